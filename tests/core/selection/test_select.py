"""Selectors and plans: never over budget, dense where factors would grow, editable, deterministic."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import decaying, gram_of, inputs
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.analysis import Analysis, Folds
from lowrank.core.budget import Budget
from lowrank.core.cost import UNITS, Unit
from lowrank.core.plan import Plan, check_budget, cost_in, dense_cost
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.registry import SELECTORS, selector_type
from lowrank.core.selection.simple import Energy, RelativeError, Uniform
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Curve
from lowrank.core.weight import Layer, Weight
from lowrank.core.weight_analysis import analyze_weight
from lowrank.errors import InfeasibleBudget, PlanMismatch

SHAPES = [(24, 24), (48, 24), (24, 48), (20, 30), (40, 40)]


def an_analysis(seed: int = 0, with_data: bool = True) -> Analysis:
    records = []
    for i, (rows, cols) in enumerate(SHAPES):
        w = decaying(rows, cols, seed + i, power=0.4 + 0.3 * i)
        weight = Weight(f"layers.{i}.w.weight", rows, cols, "float32", "projection")
        x = inputs(np.random.default_rng(seed + i), 400, cols, 30.0)
        folds = Folds(gram_of(w, x[:300]), gram_of(w, x[300:])) if with_data else None
        records.append(analyze_weight(weight, w, folds))
    return Analysis(tuple(records), fingerprint=f"a{seed}")


@given(st.sampled_from(list(SELECTORS)), st.floats(0.1, 1.0), st.integers(0, 5), st.sampled_from([1, 2, 4]))
def test_never_over_budget(name: str, keep: float, seed: int, multiple: int) -> None:
    analysis = an_analysis(seed)
    try:
        plan = selector_type(name)(multiple=multiple).select(analysis, Budget.params(keep))
    except InfeasibleBudget:
        smallest = multiple * sum(sum(shape) for shape in SHAPES) / analysis.dense_params
        assert keep < smallest or name == "uniform"
        return
    assert plan.cost <= keep * analysis.dense_params
    assert plan.meets_budget
    assert plan == selector_type(name)(multiple=multiple).select(analysis, Budget.params(keep))
    for option in plan.options:
        weight = analysis[option.group].weight
        assert option.cost <= weight.params
        assert option.structure == "dense" or option.rank % multiple == 0


@given(st.sampled_from(["knapsack", "energy", "relative-error"]), st.floats(0.01, 0.9))
def test_error_budget_holds_for_every_weight(name: str, limit: float) -> None:
    analysis = an_analysis()
    plan = selector_type(name)().select(analysis, Budget.error(limit))
    assert plan.worst_error <= limit
    assert plan.meets_budget


def test_error_budget_takes_the_smallest_rank_that_holds() -> None:
    analysis = an_analysis()
    plan = Knapsack().select(analysis, Budget.error(0.3))
    for option in plan.options:
        if option.structure == "two_factor" and option.rank > 1:
            assert analysis[option.group].error_curve[option.rank - 1] > 0.09


def test_knapsack_is_never_worse_than_the_simple_selectors() -> None:
    analysis = an_analysis()
    for keep in (0.3, 0.5, 0.8):
        best = sum(o.error for o in Knapsack().select(analysis, Budget.params(keep)).options)
        for other in (Uniform(), Energy(), RelativeError()):
            assert best <= sum(o.error for o in other.select(analysis, Budget.params(keep)).options) + 1e-12


def test_sensitivity_moves_rank_to_where_it_matters() -> None:
    from dataclasses import replace

    even = an_analysis()
    first = even.weights[0]
    skewed = replace(even, weights=(replace(first, measured=((1.0, 0.01),)), *even.weights[1:]))
    before, after = (Knapsack().select(a, Budget.params(0.4)).options for a in (even, skewed))
    assert after[0].cost < before[0].cost
    assert sum(o.error for o in after[1:]) < sum(o.error for o in before[1:])


def test_full_budget_is_the_dense_model() -> None:
    plan = Knapsack().select(an_analysis(), Budget.params(1.0))
    assert {option.structure for option in plan.options} == {"dense"}
    assert plan.worst_error == 0.0


def test_smallest_budget_that_is_named_can_be_met() -> None:
    analysis = an_analysis()
    with pytest.raises(InfeasibleBudget, match="smallest budget that can be met is") as caught:
        Knapsack().select(analysis, Budget.params(0.01))
    named = float(str(caught.value).rsplit(" ", 1)[1])
    assert Knapsack().select(analysis, Budget.params(named)).meets_budget
    with pytest.raises(InfeasibleBudget):
        Knapsack().select(analysis, Budget.params(named - 2e-4))


@pytest.mark.parametrize("limit", [0.0, -1.0, 1.5, float("nan"), float("inf")])
def test_impossible_budgets(limit: float) -> None:
    with pytest.raises(InfeasibleBudget, match="share of the targeted weights"):
        Budget.params(limit)


@pytest.mark.parametrize("limit", [-0.1, 1.0, float("nan")])
def test_impossible_errors(limit: float) -> None:
    with pytest.raises(InfeasibleBudget, match="relative output error"):
        Budget.error(limit)


def a_plan() -> tuple[Analysis, dict[str, Any]]:
    analysis = an_analysis()
    return analysis, json.loads(json.dumps(Knapsack().select(analysis, Budget.params(0.5)).to_json()))


def test_plan_round_trip() -> None:
    analysis, content = a_plan()
    again = Plan.from_json(content, analysis, Budget.params(0.5))
    assert again.options == Knapsack().select(analysis, Budget.params(0.5)).options


def test_edited_ranks_are_followed_and_their_error_recomputed() -> None:
    analysis, content = a_plan()
    content["groups"][0] |= {"structure": "two_factor", "rank": 3, "cost": 1, "relative_error": 0.0}
    del content["groups"][1]
    plan = Plan.from_json(content, analysis, None)
    assert plan.options[0].rank == 3
    assert plan.options[0].cost == 3 * 48
    assert plan.options[0].error == analysis.weights[0].error_curve[3]
    assert plan.options[1].structure == "dense"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank can be 1 to 24"),
        ({"rank": 25}, "rank can be 1 to 24"),
        ({"rank": "3"}, "whole number"),
        ({"rank": True}, "whole number"),
        ({"name": "layers.9.w.weight"}, "did you mean"),
        ({"structure": "butterfly"}, "there is dense, two_factor"),
    ],
)
def test_edits_that_mean_nothing(change: dict[str, Any], message: str) -> None:
    analysis, content = a_plan()
    content["groups"][0] |= {"structure": "two_factor", "rank": 3, **change}
    with pytest.raises(PlanMismatch, match=message):
        Plan.from_json(content, analysis, None)


def test_plan_of_another_analysis_names_both() -> None:
    _, content = a_plan()
    with pytest.raises(PlanMismatch, match="a0.*a1"):
        Plan.from_json(content, an_analysis(1), None)


def test_edited_plan_over_its_budget() -> None:
    analysis, content = a_plan()
    for entry in content["groups"]:
        entry["structure"] = "dense"
    with pytest.raises(InfeasibleBudget, match="above its budget"):
        check_budget(Plan.from_json(content, analysis, Budget.params(0.5)))


@given(st.sampled_from(UNITS), st.floats(0.1, 1.0), st.integers(0, 3))
def test_never_over_a_budget_of_any_unit(unit: Unit, keep: float, seed: int) -> None:
    analysis = an_analysis(seed)
    plan = Knapsack().select(analysis, Budget(unit, keep))
    assert plan.meets_budget and plan.reached <= keep
    assert sum(cost_in(unit, option, analysis) for option in plan.options) == pytest.approx(
        plan.reached * dense_cost(unit, analysis)
    )
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())), analysis, plan.budget)
    assert again == plan


def test_units_price_structures_differently() -> None:
    """Indices take bytes; a lookup multiplies nothing until it is factored; a tied table does both."""
    curve = Curve("any", np.array([4, 8]), np.array([100, 200]), np.zeros(2))
    linear = Weight("w", 16, 24, "bfloat16", "projection", (Layer("w", "linear"),))
    table = Weight("t", 16, 900, "float32", "embedding", (Layer("t", "lookup"),))
    tied = Weight("t", 16, 900, "float32", "embedding", (Layer("t", "lookup"), Layer("h", "linear")))
    assert structure_named("two_factor").spent("bytes", curve, [linear]).tolist() == [200, 400]
    assert structure_named("pivoted").spent("bytes", curve, [linear]).tolist() == [200 + 16 * 8, 400 + 16 * 8]
    assert structure_named("dense").spent("macs", curve, [table]).tolist() == [0, 0]
    assert structure_named("two_factor").spent("macs", curve, [table]).tolist() == [4 * 16, 8 * 16]
    assert structure_named("two_factor").spent("macs", curve, [tied]).tolist() == [100 + 4 * 16, 200 + 8 * 16]


def test_a_budget_of_multiply_adds_leaves_tables_alone() -> None:
    analysis = an_analysis()
    first, *rest = analysis.weights
    lookup = replace(first, weight=replace(first.weight, layers=(Layer("e", "lookup"),), role="embedding"))
    analysis = replace(analysis, weights=(lookup, *rest))
    plan = Knapsack().select(analysis, Budget("macs", 0.3))
    assert [o.structure for o in plan.options if o.group == first.weight.name] == ["dense"]


@pytest.mark.parametrize("name", ["uniform", "energy", "relative-error"])
@pytest.mark.parametrize("unit", ["bytes", "macs"])
def test_simple_selectors_count_parameters(name: str, unit: Unit) -> None:
    with pytest.raises(InfeasibleBudget, match="parameters"):
        selector_type(name)().select(an_analysis(), Budget(unit, 0.5))
