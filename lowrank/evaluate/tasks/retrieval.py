"""`retrieval:FOLDER`: how well queries find their documents by the similarity of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.backends.base import Backend
from lowrank.calibrate.text import json_lines, read_text
from lowrank.core.distance import unit
from lowrank.errors import TaskError
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.tasks.base import Score, Task
from lowrank.evaluate.tasks.inputs import Batches, Texts
from lowrank.evaluate.tasks.tables import read_columns

DEPTH = 10


@dataclass(frozen=True)
class Retrieval:
    """nDCG@10 of documents ranked by the cosine of their embeddings with a query's, as BEIR measures it."""

    name: str
    texts: Texts
    corpus: Batches
    queries: Batches
    judged: tuple[Mapping[int, float], ...]
    """Of each query: the gain of each document, by its place in the corpus."""
    same: tuple[int | None, ...]
    """Of each query: the document of the same id, which is the query itself and so not found by it."""
    metric: str = "nDCG@10"
    higher_is_better: bool = True

    def score(self, model: Runs) -> Score:
        """The nDCG of each query."""
        documents = unit(self.texts.vectors(model, self.corpus))
        queries = unit(self.texts.vectors(model, self.queries))
        rows: list[float] = []
        for query, judged, same in zip(queries, self.judged, self.same, strict=True):
            scores = documents @ query
            if same is not None:
                scores[same] = -np.inf
            # Of equal scores the first in the corpus comes first, whatever the sort does.
            best = np.lexsort((np.arange(len(scores)), -scores))[:DEPTH]
            rows.append(ndcg([judged.get(int(place), 0.0) for place in best], judged.values()))
        return Score(np.array(rows))


def ndcg(gains: Sequence[float], judged: Any) -> float:
    """Discounted gain of an order of documents over that of the best order (Jarvelin and Kekalainen 2002).

    Args:
        gains: of the first documents, in the order in which they were found; they count linearly.
        judged: the gains of all documents that are right.

    Example:
        >>> round(ndcg([0.0, 1.0], [1.0]), 4)
        0.6309
    """
    best = sorted(judged, reverse=True)[:DEPTH]
    return _gain(gains) / _gain(best) if _gain(best) else 0.0


def _gain(gains: Sequence[float]) -> float:
    return float(sum(gain / np.log2(rank + 2) for rank, gain in enumerate(gains)))


def read_retrieval(spec: str, rest: str, dense: Backend) -> Task:
    """From a folder as BEIR has it: `corpus.jsonl`, `queries.jsonl`, `qrels/test.tsv` (.gz too).

    Raises:
        TaskError: if one is missing or not as it should be, or the model gives no embeddings.
        CalibrationError: if a file cannot be read.
    """
    folder = Path(rest).expanduser()
    corpus, queries = _records(spec, folder, "corpus.jsonl"), _records(spec, folder, "queries.jsonl")
    path = _file(spec, folder, "qrels/test.tsv")
    columns = read_columns(spec, path, [("query-id",), ("corpus-id",), ("score",)])
    place = {key: i for i, key in enumerate(corpus)}
    judged: dict[str, dict[int, float]] = {}
    for row, (query, document, gain) in enumerate(zip(*columns, strict=True), 2):
        if query not in queries or document not in place:
            unknown = f"query {query[:40]!r}" if query not in queries else f"document {document[:40]!r}"
            raise TaskError(f"--task {spec}: {path} names {unknown} in row {row}, which is in no .jsonl file")
        if not gain.lstrip("+-").isdecimal():
            raise TaskError(f"--task {spec}: the score {gain[:40]!r} in row {row} of {path} is no whole number")
        if int(gain) > 0:
            judged.setdefault(query, {})[place[document]] = float(gain)
    if not judged:
        raise TaskError(f"--task {spec}: {path} has no document that is right for a query")
    texts = Texts.of(spec, dense, embeds=True)
    return Retrieval(
        spec,
        texts,
        texts.batches(list(corpus.values())),
        texts.batches([queries[key] for key in judged]),
        tuple(judged.values()),
        tuple(place.get(key) for key in judged),
    )


def _file(spec: str, folder: Path, name: str) -> Path:
    """A file of the folder, packed or not."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise TaskError(
        f"--task {spec}: there is no {folder / name}; give a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv"
    )


def _records(spec: str, folder: Path, name: str) -> dict[str, str]:
    """Texts by id; a title comes before its text."""
    path = _file(spec, folder, name)
    texts: dict[str, str] = {}
    for number, entry in json_lines(path, read_text(path)):
        parts: list[Any] = [entry.get(key, "") if isinstance(entry, dict) else None for key in ("_id", "title", "text")]
        if not all(isinstance(part, str) for part in parts) or not parts[0] or not "".join(parts[1:]).strip():
            raise TaskError(f"--task {spec}: {path}, line {number}, must be an object with the texts _id and text")
        texts[parts[0]] = f"{parts[1]} {parts[2]}".strip()
    return texts
