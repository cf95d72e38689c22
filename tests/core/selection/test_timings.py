"""Budgets of time: laws of the table, exactness within it, and bad tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import analysis_of, build

from lowrank.backends import open_model
from lowrank.core.budget import Budget
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.timings import Timings, sizes_for
from lowrank.core.structures import structure_named
from lowrank.errors import InfeasibleBudget, TimingError
from lowrank.pipeline.plans import select


def table_for(analysis: Any, cost: Any, step: int = 4, whole: float | None = None) -> Timings:
    """A table in which a product takes `cost(cols, rows)` microseconds, and the rest next to nothing."""
    groups = [(g, [analysis[n].weight for n in g.weights]) for g in analysis.groups.values()]
    points = {
        name: [(a, b, cost(a, b) if name == "product" else 1e-3) for a, b in each]
        for name, each in sizes_for(groups, step).items()
    }
    return Timings(points=points, tokens=16, threads=1, step=step, whole=whole)


def time_of(option: Any, analysis: Any, table: Timings) -> float:
    group = analysis.groups[option.group]
    weights = [analysis[name].weight for name in group.weights]
    return float(structure_named(option.structure).times(table, np.array([option.rank]), group, weights)[0])


@pytest.fixture(scope="module")
def analysis() -> Any:
    dense: Any = open_model(build("bert"))
    return analysis_of(dense, dense.couplings, tuple(dense.signature.example(4, 12, seed) for seed in range(2)))


def test_between_and_beyond_what_was_measured() -> None:
    table = Timings(points={"product": [(8, 4, 1.0), (8, 8, 3.0), (4, 8, 2.0)]}, tokens=1, threads=1)
    assert table.at("product", 8, 6) == 2.0 and table.at("product", 8, 8) == 3.0
    assert table.at("product", 8, 12) == pytest.approx(5.0) and table.at("product", 6, 8) == 2.5
    # Neither size was measured: half of the way between (4, 6) and (8, 6).
    wide = Timings(points={"product": [(4, 4, 1.0), (4, 8, 2.0), (8, 4, 2.0), (8, 8, 4.0)]}, tokens=1, threads=1)
    assert wide.at("product", 6, 6) == pytest.approx((1.5 + 3.0) / 2)
    with pytest.raises(TimingError, match="3 x 5"):
        table.at("product", 3, 5)


def test_time_as_multiply_adds_chooses_as_a_budget_of_multiply_adds(analysis: Any) -> None:
    # Where every product takes as long as it has numbers, time is nothing but those.
    table = table_for(analysis, lambda a, b: a * b / 1e3, step=1)
    two = Knapsack(structures=("two_factor",), timings=table)
    by_time, by_macs = select(analysis, Budget.latency(0.5), two), select(analysis, Budget("macs", 0.5), two)
    assert [(o.structure, o.rank) for o in by_time.options] == [(o.structure, o.rank) for o in by_macs.options]
    assert by_time.reached <= 0.5


def test_less_time_is_never_less_error(analysis: Any) -> None:
    table = table_for(analysis, lambda a, b: 1 + a * b / 1e3)
    plans = [select(analysis, Budget.latency(share), Knapsack(timings=table)) for share in (0.9, 0.7, 0.5)]
    assert all(p.reached <= s for p, s in zip(plans, (0.9, 0.7, 0.5), strict=True))
    costs = [sum(time_of(o, analysis, table) for o in plan.options) for plan in plans]
    assert costs == sorted(costs, reverse=True)


def test_what_would_be_slower_stays_dense(analysis: Any) -> None:
    # Every product takes the same: two in the place of one are never faster.
    table = table_for(analysis, lambda a, b: 1.0)
    plan = select(analysis, Budget.latency(1.0), Knapsack(structures=("two_factor",), timings=table))
    assert {o.structure for o in plan.options} == {"dense"} and "stay dense" in plan.notes[0]
    with pytest.raises(InfeasibleBudget, match="at its fastest"):
        select(analysis, Budget.latency(0.9), Knapsack(structures=("two_factor",), timings=table))


def test_what_is_not_in_the_table_counts(analysis: Any) -> None:
    dense = table_for(analysis, lambda a, b: a * b / 1e3)
    total = sum(r.weight.params for r in analysis.weights) / 1e3
    with_rest = table_for(analysis, lambda a, b: a * b / 1e3, whole=2 * total)
    plan = select(analysis, Budget.latency(0.75), Knapsack(structures=("two_factor",), timings=with_rest))
    alone = select(analysis, Budget.latency(0.5), Knapsack(structures=("two_factor",), timings=dense))
    assert plan.reached == pytest.approx(0.75, abs=0.02) and plan.keep_ratio == pytest.approx(
        alone.keep_ratio, abs=0.02
    )


def test_bad_tables_are_named(analysis: Any, tmp_path: Path, cli: Any, bert_folder: Path) -> None:
    good = table_for(analysis, lambda a, b: a * b / 1e3).to_json()
    assert Timings.from_json(json.loads(json.dumps(good))).to_json() == good
    for change, told in (
        ({"points": {"product": [[1, 2]]}}, "not a table of timings"),
        ({"points": {"product": [[8, 8, -1.0]]}}, "times that are not positive numbers"),
        ({"points": {}}, "times that are not positive numbers"),
        ({"tokens": None}, "not a table of timings"),
        ({"whole": 1e-9}, "measured for another model"),
    ):
        with pytest.raises(TimingError, match=told):
            bad = Timings.from_json({**good, **change})
            select(analysis, Budget.latency(0.5), Knapsack(timings=bad))
    other = Timings(points={"product": [(5, 7, 1.0)]}, tokens=1, threads=1)
    (tmp_path / "other.json").write_text(json.dumps(other.to_json()))
    (tmp_path / "text.json").write_text("nothing")
    for file, told in (("other.json", "other shapes"), ("text.json", "no table"), ("none.json", "there is no")):
        options = ("--calib", "none", "--latency", "0.5", "--table", tmp_path / file, "-o", tmp_path / "r")
        refused = cli("compress", bert_folder, *options)
        assert refused.code == 1 and told in refused.err, refused.err
    refused = cli("compress", bert_folder, "--latency", "fast", "-o", tmp_path / "r")
    assert refused.code == 2 and "12ms" in refused.err
    with pytest.raises(InfeasibleBudget, match="dense.onnx"):
        Budget("milliseconds", 3.0).of_whole(None)
