"""A budget of speed: types chosen with structures and ranks, and bytes beside it; and the table that it is spent on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from architectures import analysis_of, build
from builders import write_text

import lowrank
from lowrank.backends import open_model
from lowrank.backends.onnx.save import file_size
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan, check_budget
from lowrank.core.selection.knapsack import Knapsack, bytes_of, share_in_time
from lowrank.core.selection.timings import Timings, sizes_for
from lowrank.edge.target import Target
from lowrank.errors import InfeasibleBudget, LowRankError, TimingError
from lowrank.evaluate.dense_graph import DenseGraph
from lowrank.pipeline.budgets import measured_speed
from lowrank.pipeline.budgets.operator_times import BOTH, check_table, model_times
from lowrank.pipeline.budgets.whole_model import corrected, write_smallest
from lowrank.pipeline.plans import select
from lowrank.results.report import ONNX_FILE


def table_of(analysis: Any, fast: float = 3.0, step: int = 4) -> Timings:
    """Products take as many nanoseconds as they have numbers, in eight bits `fast` times less; all else takes half."""
    groups = [(g, [analysis[n].weight for n in g.weights]) for g in analysis.groups.values()]

    def points(divided: float) -> Any:
        return {
            name: [(a, b, a * b / 1e3 / divided if name == "product" else 1e-3) for a, b in each]
            for name, each in sizes_for(groups, step).items()
        }

    exact, int8 = (
        Timings(points=points(by), tokens=16, threads=1, step=step, dtype=dtype)
        for by, dtype in ((1.0, "float32"), (fast, "int8"))
    )
    dense = sum(exact.dense(record.weight) for record in analysis.weights)
    return replace(exact, whole=1.5 * dense, others=(int8,))


@pytest.fixture(scope="module")
def analysis() -> Any:
    dense: Any = open_model(build("bert"))
    return analysis_of(dense, dense.couplings, tuple(dense.signature.example(4, 12, seed) for seed in range(2)))


def test_types_are_chosen_with_ranks(analysis: Any) -> None:
    table = table_of(analysis)
    plan = select(analysis, Budget.speedup(1.8), Knapsack(timings=table))
    assert plan.budget == Budget.speedup(1.8) and plan.meets_budget
    assert plan.share is not None and plan.reached == pytest.approx(1 / plan.share)
    assert plan.reached >= 1.8
    # Eight bits take a third of the time and lose next to nothing: nothing has to be cut.
    assert {o.dtype for o in plan.options} == {"int8"} and plan.keep_ratio == 1.0
    alone = select(analysis, Budget.latency(1 / 1.8), Knapsack(timings=table))
    assert {o.dtype for o in alone.options} == {"float32"} and alone.keep_ratio < 0.6
    again = Plan.from_json(plan.to_json(), analysis, plan.budget)
    assert again.options == plan.options and again.reached == pytest.approx(plan.reached)


def test_a_plan_is_held_against_its_own_types(analysis: Any) -> None:
    table = table_of(analysis)
    plan = select(analysis, Budget.speedup(1.8), Knapsack(timings=table))
    assert share_in_time(plan.options, analysis, table) == pytest.approx(plan.share, rel=1e-3)
    with pytest.raises(TimingError, match="stored in int8, and the table was measured for float32 alone"):
        share_in_time(plan.options, analysis, replace(table, others=()))
    slow = replace(plan, share=0.9)
    with pytest.raises(InfeasibleBudget, match=r"is 1\.111 times as fast, and 1\.8 times were asked for"):
        check_budget(slow)


def test_a_type_whose_dense_model_was_not_timed_has_the_rest_of_another(analysis: Any) -> None:
    table = check_table(table_of(analysis), "int8")
    assert table.whole is None and table.dtype == "int8"
    plan = select(analysis, Budget.latency(0.7), Knapsack(timings=table))
    # A third of the products, and half of the float32 products beside: that much is not the products' to save.
    dense = sum(table.dense(record.weight) for record in analysis.weights)
    assert plan.share == pytest.approx(0.7, abs=0.05)
    assert plan.share is not None
    spent = plan.share * (dense + 1.5 * dense) - 1.5 * dense
    assert 0 < spent < dense


def test_where_eight_bits_are_slower_they_are_left(analysis: Any) -> None:
    plan = select(analysis, Budget.speedup(1.5), Knapsack(timings=table_of(analysis, fast=0.2)))
    assert {o.dtype for o in plan.options} == {"float32"} and plan.meets_budget


def test_a_table_of_one_type_offers_that(analysis: Any) -> None:
    table = replace(table_of(analysis), others=())
    plan = select(analysis, Budget.speedup(1.5), Knapsack(timings=table))
    assert {o.dtype for o in plan.options} == {"float32"} and plan.meets_budget


def test_speed_and_bytes_both_hold(analysis: Any) -> None:
    selector = Knapsack(timings=table_of(analysis))
    fast = select(analysis, Budget.speedup(1.8), selector)
    whole = bytes_of(fast.options, analysis)
    both = select(analysis, Budget.speedup(1.8, 0.8 * whole), selector)
    assert both.meets_budget and bytes_of(both.options, analysis) <= 0.8 * whole
    small = select(analysis, Budget.size(0.8 * whole), selector)

    def lost(plan: Plan) -> float:
        groups = analysis.groups
        return sum(float(analysis.loss(groups[o.group], o.structure, o.curve.errors, 0.5)[0]) for o in plan.options)

    # What holds to both loses at least as much as what holds to one of them.
    assert lost(both) >= max(lost(fast), lost(small)) * (1 - 1e-9)
    assert Plan.from_json(both.to_json(), analysis, both.budget).budget == both.budget


def test_what_cannot_be_reached_says_what_can(analysis: Any) -> None:
    selector = Knapsack(timings=table_of(analysis))
    with pytest.raises(InfeasibleBudget, match=r"9 times the dense model's speed.*at most --speedup 2\.\d"):
        select(analysis, Budget.speedup(9), selector)
    with pytest.raises(InfeasibleBudget, match=r"smallest file of any speed has"):
        select(analysis, Budget.speedup(1.5, 100), selector)
    with pytest.raises(InfeasibleBudget, match="at least 1"):
        Budget.speedup(0.5)
    with pytest.raises(InfeasibleBudget, match="beside a speedup"):
        Budget("params", 0.5, 1000)


def test_a_table_of_both_types_is_one_file(analysis: Any) -> None:
    table = table_of(analysis)
    again = Timings.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table and again.of("int8") == table.others[0] and again.of("int4") == table.others[0]
    assert again.of("float16") is None
    part = check_table(again, "int8")
    assert part.dtype == "int8" and part.of("float32") is not None
    with pytest.raises(TimingError, match="measured for float32"):
        check_table(replace(table, others=()), "int8")


def test_operators_are_made_true_to_the_model(tmp_path: Path) -> None:
    """Whole models that take three for each part of their products, and five beside: the table has both then."""
    dense: Any = open_model(build("bert"))
    dense.write_onnx(tmp_path / "dense.onnx")
    analysis: Any = analysis_of(dense, dense.couplings, (dense.signature.example(4, 12),))
    table = table_of(analysis)
    weights = write_smallest(tmp_path / "dense.onnx", tmp_path / "small.onnx", table)
    assert len(weights) == len(analysis.weights) + 1, "the pooler has the size of a projection"
    assert file_size(tmp_path / "small.onnx") < file_size(tmp_path / "dense.onnx")
    thin = sum(table.product(w.cols, 4) + table.product(4, w.rows) for w in weights)

    def whole(each: Timings, scale: float) -> Timings:
        return replace(each, others=(), whole=5.0 + scale * sum(map(each.dense, weights)))

    tables = {"float32": whole(table, 2.0), "int8": whole(table.others[0], 1.5)}
    found = corrected(tables, weights, 5.0 + 2.0 * thin)
    for dtype, scale in (("float32", 2.0), ("int8", 1.5)):
        assert found[dtype].product(16, 16) == pytest.approx(scale * tables[dtype].product(16, 16))
        assert found[dtype].whole == tables[dtype].whole
    # Products are never scaled beyond what the whole model takes.
    for dtype, each in corrected(tables, weights, 1.0).items():
        assert sum(map(each.dense, weights)) <= (tables[dtype].whole or 0.0) * (1 + 1e-9)
    # A smallest model that is slower than the dense one tells nothing.
    assert corrected(tables, weights, 1e9) == tables


@pytest.mark.parametrize(
    ("truth", "asked", "kept"),
    [
        # What is predicted is what comes: one trial is enough.
        ({1.8: 1.8}, [1.8], 1.8),
        # Faster than it has to be: made again, for as much less.
        ({1.8: 2.4, 1.35: 1.8}, [1.8, 1.35], 1.8),
        # Too slow, and then fast enough.
        ({1.8: 1.5, 2.16: 1.85}, [1.8, 2.16], 1.85),
        # The second one is too slow: the third is between them.
        ({1.8: 2.4, 1.35: 1.25, 1.94: 1.9}, [1.8, 1.35, 1.94], 1.9),
        # Only the first is fast enough, and there is no fourth.
        ({1.8: 2.4, 1.35: 1.25, 1.94: 1.5}, [1.8, 1.35, 1.94], 2.4),
        # A speed that no plan is predicted to have.
        ({1.8: 0.5}, [1.8, 6.48], 0.5),
    ],
)
def test_a_plan_is_made_again_by_what_its_graph_took(
    analysis: Any, monkeypatch: pytest.MonkeyPatch, truth: dict[float, float], asked: list[float], kept: float
) -> None:
    selector, tried, finding = Knapsack(timings=table_of(analysis)), list[float](), [0.0]

    def find(budget: Budget) -> Plan:
        tried.append(round(budget.limit, 2))
        finding[0] = tried[-1]
        plan = select(analysis, budget, selector)
        # As if the prediction were exactly what was asked for.
        return replace(plan, share=1 / budget.limit)

    def times(*_: object) -> dict[str, float]:
        return {"dense": 10.0, "tried": 10.0 / truth[finding[0]]}

    for name in ("make_graph", "fit_file", "compressed_model", "signature_of"):
        monkeypatch.setattr(measured_speed, name, lambda *_, **__: None)
    monkeypatch.setattr(measured_speed, "measure_latency", times)
    graph = SimpleNamespace(write=lambda _: None)
    session: Any = SimpleNamespace(dense=None, graph=graph, analysis=analysis, on_trial=None)
    plan = measured_speed.measured_plan(session, Budget.speedup(1.8), find, Target(), (16, 1))
    assert tried == asked and plan.budget == Budget.speedup(1.8)
    assert plan.reached == pytest.approx(kept)
    assert bool(plan.notes) == (kept < 1.7)


@pytest.mark.slow
def test_the_command_chooses_types_measures_and_holds_both(
    bert_folder: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    text, run = write_text(tmp_path / "text.txt", 60), tmp_path / "run"
    dense: Any = open_model(bert_folder)
    calibrated = lowrank.analyze(str(bert_folder), output=run, settings=lowrank.Settings(calib=str(text)))
    timings = model_times(DenseGraph(dense), calibrated, Target(), BOTH)
    assert timings.dtype == "float32" and timings.of("int8") is not None and timings.whole
    table = tmp_path / "table.json"
    table.write_text(json.dumps(table_of(calibrated).to_json()), encoding="utf-8")
    asked = ("compress", "-o", str(run), "--speedup", "1.6", "--table", str(table), "--no-timing")
    assert cli(*asked).code == 0
    report = json.loads((run / "report.json").read_text())
    assert report["budget"]["kind"] == "speedup" and report["budget"]["reached"] >= 1.6
    assert report["onnx"]["dtype"] == "mixed"
    before = file_size(run / ONNX_FILE)
    assert cli(*asked, "--size", str(int(0.97 * before))).code == 0
    assert file_size(run / ONNX_FILE) <= 0.97 * before
    assert json.loads((run / "plan.json").read_text())["budget"]["size"] == int(0.97 * before)
    reached = json.loads((run / "report.json").read_text())["budget"]
    assert (reached["size"], reached["size_reached"]) == (int(0.97 * before), file_size(run / ONNX_FILE))
    wrong = cli("compress", "-o", str(run), "--speedup", "fast")
    assert wrong.code == 2
    with pytest.raises(LowRankError, match="chooses the type"):
        lowrank.compress(None, Budget.speedup(2), output=run, target=Target(dtype="int8"))
