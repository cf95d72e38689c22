"""Every structure on weights that no trained model should have: it offers sanely or not at all, and plans hold."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_stress import FLOAT32, WEIGHTS

from lowrank.core.analysis import Analysis, Folds
from lowrank.core.budget import Budget
from lowrank.core.linalg.eigen import magnitude
from lowrank.core.plan import Plan
from lowrank.core.rounding.cost import rounding_errors
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.registry import SELECTORS, selector_type
from lowrank.core.selection.selector import Selector
from lowrank.core.structures import factorize_option, structure_named, structures
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.truncation.neurons import neuron_curve, neuron_order, refit
from lowrank.core.weight import Coupling, Layer, View, Weight
from lowrank.core.weight_analysis import analyze_weight
from lowrank.errors import InfeasibleBudget

WIDTH, HIDDEN = 8, 12
SHAPES = {
    "query": (WIDTH, WIDTH),
    "key": (WIDTH, WIDTH),
    "value": (WIDTH, WIDTH),
    "output": (WIDTH, WIDTH),
    "up": (HIDDEN, WIDTH),
    "down": (WIDTH, HIDDEN),
    "line": (1, 40),
    "column": (40, 1),
    "table": (WIDTH, 50),
    "conv": (6, 36),
}
COUPLINGS = (
    Coupling("query_key", ("query", "key"), 2, 2),
    Coupling("value_output", ("value", "output"), 2, 2),
    Coupling("hidden", ("up", "down")),
    Coupling("same_input", ("query", "key", "value")),
)
ROTARY = Coupling("rotary_halves", ("query", "key"), 2, 2)
KERNEL = (6, 4, 3, 3)

DATA = ("plain", "dead", "constant", "zeros", "outliers")


class Numbers:
    """The numbers of a model that was never trained."""

    def __init__(self, kind: str, biased: bool, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.matrices = {name: WEIGHTS[kind](*shape, rng) for name, shape in SHAPES.items()}
        size = magnitude(self.matrices["query"])
        self.biases = {n: size * rng.standard_normal(s[0]) for n, s in SHAPES.items()} if biased else {}

    def read(self, name: str) -> np.ndarray:
        return self.matrices[name]

    def bias(self, name: str) -> np.ndarray | None:
        return self.biases.get(name)


def weights() -> list[Weight]:
    found = []
    for name, (rows, cols) in SHAPES.items():
        kind = {"table": "lookup", "conv": "conv"}.get(name, "linear")
        weight = Weight(name, rows, cols, "float32", "projection", (Layer(name, kind),))  # type: ignore[arg-type]
        if name == "conv":
            weight = replace(weight, view=View.of_conv(KERNEL), spatial=View.of_spatial(KERNEL))
        found.append(weight)
    return found


def drawn(kind: str, tokens: int, width: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((tokens, width))
    if kind == "dead":
        x[:, ::2] = 0
    elif kind == "constant":
        # Far from zero, and hardly moving: what a covariance is left with is rounding.
        x = 1e4 + 1e-9 * x
    elif kind == "zeros":
        x[:] = 0
    elif kind == "outliers":
        x[:, 0] *= 1e5
    return x


@cache
def analysis_of(kind: str, data: str, biased: bool = True, seed: int = 0) -> tuple[Analysis, Numbers]:
    numbers, rng = Numbers(kind, biased, seed), np.random.default_rng(seed + 1)
    grams: dict[str, Folds] = {}
    coupled = {name for coupling in COUPLINGS for name in coupling.weights}
    for weight in weights():
        x = drawn(data, 90, weight.cols, rng)
        side = Gram.zeros(weight, "input" if weight.name in coupled else None).side
        energy = [float(np.square(part).sum()) for part in (x[:60], x[60:])]
        seen = x if side == "input" else x @ numbers.read(weight.name).T
        grams[weight.name] = Folds(Gram.of(side, seen[:60], energy[0]), Gram.of(side, seen[60:], energy[1]))
    records = tuple(analyze_weight(w, numbers.read(w.name), grams[w.name]) for w in weights())
    couplings = [s.measure(b, grams, numbers) for b in (*COUPLINGS, ROTARY) for s in structures()]
    found = tuple(each for each in couplings if each is not None)
    return Analysis(records, couplings=found, grams=grams, fingerprint=f"{kind} {data}"), numbers


def numbers_of(made: Replacement) -> list[np.ndarray]:
    factors = made.factors
    arrays = [factors.matrix] if isinstance(factors, Narrow) else [factors.left, factors.right]
    return arrays if made.bias is None else [*arrays, made.bias]


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("kind", FLOAT32)
def test_every_structure_offers_sanely_or_not_at_all(kind: str, data: str) -> None:
    analysis, numbers = analysis_of(kind, data)
    offered = set()
    for group in analysis.groups.values():
        dense = analysis.params(group)
        for structure in structures():
            curve = structure.curve(group, analysis, 1)
            assert np.isfinite(curve.errors).all() and (curve.errors >= 0).all()
            assert (np.diff(curve.ranks) > 0).all() and (curve.costs > 0).all()
            if structure.name not in ("dense", "residual"):
                assert (curve.costs < dense).all()
            if not len(curve.ranks):
                continue
            offered.add(structure.name)
            for at in {0, len(curve.ranks) // 2, len(curve.ranks) - 1}:
                option = curve.option(group.name, at)
                assert structure.at(group, analysis, option.rank) == option
                for name, made in factorize_option(option, analysis, numbers).items():
                    seen = made.dense(analysis[name].weight)
                    assert seen.shape == analysis[name].weight.shape
                    # Where the outputs leave float32 by themselves, float64 at least holds what takes them over.
                    kept = np.float64 if kind == "near the end of float32" else np.float32
                    assert all(np.isfinite(each.astype(kept)).all() for each in numbers_of(made))
    assert {"dense", "two_factor", "pivoted"} <= offered
    if data != "zeros":
        assert {"product", "neurons", "shared", "rotary"} <= offered


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(
    "kind", [k for k in FLOAT32 if k not in ("one huge singular value", "near the end of float32")]
)
def test_what_16_bits_hold_as_a_matrix_they_hold_as_any_structure(kind: str, data: str, dtype: torch.dtype) -> None:
    analysis, numbers = analysis_of(kind, data, biased=False)
    # Of a matrix whose outputs leave float16 by themselves, what another layer is fitted to does so too.
    bare = kind == "near the end of float16"
    for group in analysis.groups.values():
        for structure in structures():
            if bare and structure.name not in ("two_factor", "pivoted", "spatial", "shared"):
                continue
            curve = structure.curve(group, analysis, 1)
            for at in {0, len(curve.ranks) - 1} if len(curve.ranks) else ():
                for made in factorize_option(curve.option(group.name, at), analysis, numbers).values():
                    for each in numbers_of(made):
                        assert torch.isfinite(torch.from_numpy(np.ascontiguousarray(each)).to(dtype)).all()


@pytest.mark.parametrize("name", ["two_factor", "shared"])
@pytest.mark.parametrize("kind", FLOAT32)
def test_full_rank_is_lossless(kind: str, name: str) -> None:
    analysis, numbers = analysis_of(kind, "plain")
    structure = structure_named(name)
    for group in analysis.groups.values():
        try:
            rank = max(r for r in range(1, 41) if _has(structure, group, analysis, r))
        except ValueError:
            continue
        for each, made in structure.factorize(group, rank, analysis, numbers).items():
            assert isinstance(made.factors, Factors)
            w = numbers.read(each)
            rest = (w - made.factors.product()) / magnitude(w)
            assert np.linalg.norm(rest) <= 1e-12 * np.linalg.norm(w / magnitude(w))


def _has(structure: object, group: object, analysis: Analysis, rank: int) -> bool:
    try:
        structure.at(group, analysis, rank)  # type: ignore[attr-defined]
    except ValueError:
        return False
    return True


def within(selector: Selector, analysis: Analysis, budget: Budget) -> Plan | None:
    try:
        plan = selector.select(analysis, budget)
    except InfeasibleBudget:
        return None
    assert plan.meets_budget and plan == selector.select(analysis, budget)
    names = sorted(name for option in plan.options for name in analysis.groups[option.group].weights)
    assert names == sorted(r.weight.name for r in analysis.weights)
    assert all(np.isfinite(option.error) and option.error >= 0 for option in plan.options)
    return plan


@given(st.sampled_from(FLOAT32), st.sampled_from(DATA), st.floats(0.05, 1), st.sampled_from(list(SELECTORS)))
def test_a_plan_never_exceeds_its_budget(kind: str, data: str, keep: float, name: str) -> None:
    analysis, numbers = analysis_of(kind, data)
    plan = within(selector_type(name)(), analysis, Budget.params(keep))
    if plan is None:
        # A line and a column cannot be factored: they are dense, and so are the smallest of the others.
        assert name == "uniform" or keep < 0.35
        return
    assert plan.cost <= keep * analysis.dense_params
    for option in plan.options:
        for made in factorize_option(option, analysis, numbers).values():
            assert all(np.isfinite(each).all() for each in numbers_of(made))


@pytest.mark.parametrize("data", ["plain", "constant"])
@pytest.mark.parametrize("kind", FLOAT32)
def test_budgets_of_errors_and_of_sizes_hold(kind: str, data: str) -> None:
    analysis, _ = analysis_of(kind, data)
    plan = within(Knapsack(), analysis, Budget.error(0.1))
    assert plan is not None and plan.worst_error <= 0.1
    plan = within(Knapsack(), analysis, Budget.size(1e4))
    assert plan is not None and plan.share is not None and plan.share <= 1e4


def test_zero_matrices_cost_and_lose_nothing() -> None:
    """In a model of which half is zero all that a budget spares goes to the other half."""
    zero, _ = analysis_of("zero", "plain")
    some, _ = analysis_of("plain", "plain")
    half = Analysis(tuple((zero if i % 2 else some).weights[i] for i in range(len(SHAPES))))
    plan = within(Knapsack(), half, Budget.params(0.6))
    assert plan is not None
    for option in plan.options:
        if half[option.group].plain.values.any():
            assert option.error <= 1
        else:
            assert option.error == 0 and option.cost > 0
    dense = {o.group for o in plan.options if o.structure == "dense"}
    assert all(half[name].plain.values.any() or half[name].break_even < 1 for name in dense)


def test_duplicated_layers_get_the_same_error() -> None:
    analysis, numbers = analysis_of("plain", "plain")
    record = analysis["up"]
    copies = [replace(record, weight=replace(record.weight, name=f"layer.{i}.up")) for i in range(6)]
    grams = {r.weight.name: analysis.grams["up"] for r in copies}
    twins = Analysis(tuple(copies), grams=grams)
    made = [twins.directions(r.weight.name, numbers.read("up")).truncate(numbers.read("up"), 4) for r in copies]
    assert all((m.left == made[0].left).all() and (m.right == made[0].right).all() for m in made)
    for keep in (0.3, 0.5, 0.7):
        plan = within(Knapsack(), twins, Budget.params(keep))
        assert plan is not None and plan.gap == 0
        ranks = [o.rank for o in plan.options]
        assert max(ranks) - min(ranks) <= 2


@given(st.integers(1, 12), st.integers(0, 500), st.floats(0, 6), st.floats(-12, 0))
def test_neurons_that_hardly_move(count: int, seed: int, offset: float, spread: float) -> None:
    """A covariance that rounding has made indefinite: an order and errors all the same, falling to nothing."""
    rng = np.random.default_rng(seed)
    x = 10.0**offset + 10.0**spread * rng.standard_normal((40, count))
    gram, last = Gram.of("input", x), rng.standard_normal((3, count))
    order = neuron_order(last, gram.covariance)
    assert sorted(order) == list(range(count))
    steps, errors = neuron_curve(last, order, gram.covariance, gram.covariance)
    assert np.isfinite(errors).all() and (np.diff(errors) <= 0).all() and errors[-1] == 0
    for step in steps:
        assert np.isfinite(refit(last, gram.covariance, order[:step])).all()


@pytest.mark.parametrize("kind", WEIGHTS)
def test_errors_of_rounding_are_shares_or_not_on_offer(kind: str) -> None:
    for weight in weights():
        w = WEIGHTS[kind](*weight.shape, np.random.default_rng(0))
        x = drawn("outliers", 50, weight.cols, np.random.default_rng(1))
        for gram in (None, Gram.of("input", x)):
            found = rounding_errors(weight, w, gram, gram)
            assert all(0 <= error <= 1.5 for error in found.values()), (weight.name, found)
