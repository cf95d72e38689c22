"""What benches do with numbers: collections are scored, tables are turned, reports are held against other measures."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from blocks import ROOT

sys.path.insert(0, str(ROOT / "tools"))

from bench_real import Variant
from measured import Table
from render_numbers import by_keep
from sentences import Collection, by_length


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    """Three documents, of which the second answers the first question, and none the second one."""
    (tmp_path / "qrels").mkdir()
    files = {
        "corpus.jsonl.gz": [{"_id": f"d{i}", "title": "", "text": f"document {i}"} for i in range(3)],
        "queries.jsonl.gz": [{"_id": f"q{i}", "text": f"question {i}"} for i in range(2)],
    }
    for name, entries in files.items():
        with gzip.open(tmp_path / name, "wt", encoding="utf-8") as stream:
            stream.write("\n".join(json.dumps(entry) for entry in entries))
    with gzip.open(tmp_path / "qrels" / "test.tsv.gz", "wt", encoding="utf-8") as stream:
        stream.write("query-id\tcorpus-id\tscore\nq0\td1\t1\nq1\td1\t0\n")
    return Collection(tmp_path)


def test_a_question_without_an_answer_is_not_asked(collection: Collection) -> None:
    assert collection.questions == ["question 0"]


def test_a_collection_is_scored_by_the_place_of_the_right_document(collection: Collection) -> None:
    question = np.array([[1.0, 0.0]])
    found = [collection.ndcg(np.array(rows), question) for rows in ([[0, 1], [1, 0], [0, 1]], [[1, 0], [1, 0], [0, 1]])]
    # Of equal documents the first comes first.
    assert np.concatenate(found) == pytest.approx([1.0, 1 / np.log2(3)])


def test_every_sample_is_in_one_batch_of_its_length() -> None:
    samples = [[0] * length for length in (3, 5, 3, 3, 5, 200)]
    parts = by_length(samples, tokens=6)
    assert sorted(i for part in parts for i in part) == list(range(6))
    assert all(len({len(samples[i]) for i in part}) == 1 for part in parts)
    assert all(len(part) == 1 or sum(len(samples[i]) for i in part) <= 6 for part in parts)


def test_what_is_not_compressed_is_alike_at_every_keep_ratio() -> None:
    columns = {"model": "", "keep": "g", "score": ".1f", "seconds": "", "peak MB": ""}
    rows = [
        ["dense", 1, 9.0, None, None],
        ["ours", 0.8, 8.0, 1, 2],
        ["ours", 0.5, 5.0, 3, 4],
        ["other", 0.5, 4.0, 1, 1],
    ]
    turned = by_keep(Table(columns, rows))
    assert list(turned.columns) == ["model", "score at 0.8", "score at 0.5", "seconds", "peak MB"]
    expected = [["dense", 9.0, 9.0, None, None], ["ours", 8.0, 5.0, 3, 4], ["other", None, 4.0, 1, 1]]
    assert [list(row) for row in turned.rows] == expected


@pytest.mark.parametrize(
    ("fidelity", "unfit", "outside", "said"),
    [
        (0.95, [], 0.93, None),
        (0.95, [], 0.4, "fit for use"),
        (0.5, ["x"], 0.97, "calls it unfit"),
        (0.7, ["x"], 0.3, "0.300"),
    ],
)
def test_a_report_that_differs_from_what_is_measured_outside_is_named(
    fidelity: float, unfit: list[str], outside: float, said: str | None
) -> None:
    variant = Variant("keep 0.5", Path("model.onnx"), {"quality": {"fidelity": fidelity}, "unfit": unfit})
    sentence = variant.difference(outside)
    assert sentence is None if said is None else said in str(sentence)


def test_a_graph_without_a_report_differs_from_nothing() -> None:
    assert Variant("dense", Path("model.onnx")).difference(1.0) is None
