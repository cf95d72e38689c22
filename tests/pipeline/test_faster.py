"""A result that is slower than the dense model comes with a budget of time, tried by prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from architectures import analysis_of, build

from lowrank.backends import open_model
from lowrank.core.selection.timings import Timings, sizes_for
from lowrank.edge.target import Target
from lowrank.errors import TimingError
from lowrank.evaluate.dense_graph import DenseGraph
from lowrank.evaluate.judges import Judges
from lowrank.pipeline.budgets import faster as advice
from lowrank.pipeline.session import Session
from lowrank.results.parts import Latency


@pytest.fixture(scope="module")
def session() -> Session:
    dense: Any = open_model(build("bert"))
    feeds = tuple(dense.signature.example(4, 12, seed) for seed in range(2))
    analysis = analysis_of(dense, dense.couplings, feeds)
    return Session(dense=dense, graph=DenseGraph(dense), judges=Judges(dense, []), current=analysis)


def times(dense: float, compressed: float) -> Latency:
    return Latency(
        dense_ms=dense,
        compressed_ms=compressed,
        speedup=dense / compressed,
        threads=1,
        shapes=["1 x 128"],
        dense_onnx_bytes=2,
        compressed_onnx_bytes=1,
    )


def table(session: Session, cost: Callable[[int, int], float]) -> Timings:
    analysis = session.analysis
    groups = [(g, [analysis[n].weight for n in g.weights]) for g in analysis.groups.values()]
    points = {
        name: [(a, b, cost(a, b) if name == "product" else 1e-3) for a, b in each]
        for name, each in sizes_for(groups, 4).items()
    }
    return Timings(points=points, tokens=128, threads=1, step=4)


def told(
    session: Session, monkeypatch: pytest.MonkeyPatch, cost: Callable[[int, int], float], latency: Latency
) -> str | None:
    monkeypatch.setattr(advice, "model_times", lambda *_: table(session, cost))
    return advice.faster(session, Target(), latency)


def test_the_mildest_budget_that_is_met_is_named(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where time is multiply-adds, every budget can be met.
    sentence = told(session, monkeypatch, lambda a, b: a * b / 1e3, times(10.0, 12.0))
    assert sentence is not None and "--latency 0.9 is predicted to take" in sentence
    milliseconds = float(sentence.split("take ")[1].split(" ms")[0])
    assert 0 < milliseconds <= 9.0


def test_where_no_ranks_are_faster_that_is_said(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every product takes the same: two are never faster than one, and what can be left out is too little.
    sentence = told(session, monkeypatch, lambda a, b: 1e3 if min(a, b) > 0 else 0.0, times(10.0, 12.0))
    assert sentence is not None and sentence.startswith("No ranks are predicted")


def test_nothing_is_timed_for_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> Timings:
        raise AssertionError("operators were timed")

    monkeypatch.setattr(advice, "model_times", refused)
    assert advice.faster(session, Target(), times(10.0, 9.0)) is None
    assert advice.faster(session, Target(), times(0.1, 0.2)) is None


def test_what_cannot_be_timed_has_no_advice(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> Timings:
        raise TimingError("no operators of its own")

    monkeypatch.setattr(advice, "model_times", refused)
    assert advice.faster(session, Target(), times(10.0, 12.0)) is None
