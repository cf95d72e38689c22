"""Trained models with data of their own domain and of another, for benches."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from baselines import baselines
from measured import Cell
from sentences import COLUMNS, Judge, by_length, minilm_folder, of_module

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
    columns: Mapping[str, str]
    """What `measure` gives, and how it is printed; the last one on data of another domain than the calibration's."""
    measure: Callable[[Any], tuple[Cell, ...]] = field(repr=False)
    instead: Callable[[], Mapping[str, tuple[Cell, ...]]] = field(default=dict[str, tuple[Cell, ...]], repr=False)
    """Measures what one would take instead of a compressed model, by name."""
    keeps: tuple[float, ...] = (0.8, 0.5, 0.3)


def first_rows(path: Path, target: Path, rows: int = ROWS) -> Path:
    """The head of a table and its first rows, in a file of their own."""
    with path.open(encoding="utf-8") as stream:
        lines = [line for _, line in zip(range(rows + 1), stream, strict=False)]
    target.write_text("".join(lines), encoding="utf-8")
    return target


def minilm_data(data: Path, work: Path) -> tuple[lowrank.Settings, lowrank.Settings]:
    """Sentences of its own domain, and of another: STS-B, and film reviews."""
    head = first_rows(data / "stsb_train.tsv", work / "first.tsv")
    return (
        lowrank.Settings(calib=str(head), column="sentence1,sentence2", samples=2 * ROWS),
        lowrank.Settings(calib=str(data / "sst2_train.tsv"), column="sentence", samples=2 * ROWS),
    )


def minilm(data: Path, work: Path) -> Subject:
    """Sentence embeddings: similarity, retrieval, and the cosine to the dense model's on three kinds of text."""
    from transformers import AutoModel

    folder = str(minilm_folder())
    calib, elsewhere = minilm_data(data, work)
    judge = Judge(data, of_module(AutoModel.from_pretrained(folder).eval()))
    return Subject(
        name="all-MiniLM-L6-v2",
        source=folder,
        calib=calib,
        elsewhere=elsewhere,
        columns=COLUMNS,
        measure=lambda model: judge(of_module(model)),
        instead=lambda: {b.name: judge(b.embed, other=b.other) for b in baselines(work / "instead")},
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
        columns={"perplexity of its stories": "figure", "of plays": "figure"},
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
        columns={"perplexity of plays": "figure", "of articles": "figure"},
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
        columns=dict.fromkeys(("accuracy", "as dense", "as dense in the dark"), ".4f"),
        # Nothing is lost above: so short a training leaves a model that needs few directions.
        keeps=(0.3, 0.1, 0.05),
        measure=measure,
    )


TRAINED = ("stories", "vit", "gpt")
"""Subjects whose models are no part of a package: an option names each one's folder."""


def parser(text: str | None, others: Sequence[str] = TRAINED) -> argparse.ArgumentParser:
    """The options of a bench over several subjects.

    Args:
        text: what the bench is for.
        others: of `TRAINED`, those that it can take beside the model of sentence embeddings.
    """
    options = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    for name in others:
        options.add_argument(f"--{name}", type=Path)
    options.add_argument("--only", help=f"one of minilm, {', '.join(others)}")
    options.add_argument("--output", type=Path, default=Path("bench"))
    return options


def asked(args: argparse.Namespace, work: Path) -> Iterator[tuple[str, Subject]]:
    """The subjects that the options name, each made when its turn comes, with short names."""
    made: Mapping[str, Callable[[], Subject]] = {
        "minilm": lambda: minilm(args.data, work),
        "stories": lambda: stories(args.stories, args.data, work),
        "vit": lambda: vit(args.vit),
        "gpt": lambda: gpt(args.gpt, args.data),
    }
    given = ["minilm", *(name for name in TRAINED if getattr(args, name, None))]
    for name in [args.only] if args.only else given:
        yield name, made[name]()
