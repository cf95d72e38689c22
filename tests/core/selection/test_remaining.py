"""Laws of cutting again: truncations of truncations, and what a finished weight is predicted to lose."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from builders import decaying, gram_of, inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank.core.analysis import Analysis, Folds
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.recut import Cutting, cutting_of
from lowrank.core.selection.remaining import CompressedWeights, recut, remaining, thin_of
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.directions import directions, thin_directions
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.gram import Side
from lowrank.core.truncation.pivoted import Pivoted, pivot
from lowrank.core.weight import Layer, Weight
from lowrank.core.weight_analysis import analyze_weight

sizes = st.integers(3, 14)
seeds = st.integers(0, 500)
sides = st.sampled_from(["input", "output"])


class Dense:
    """Weights in memory."""

    def __init__(self, matrices: dict[str, np.ndarray]) -> None:
        self.matrices = matrices

    def read(self, name: str) -> np.ndarray:
        return self.matrices[name]

    def bias(self, name: str) -> None:
        return None


def weight_of(name: str, matrix: np.ndarray) -> Weight:
    return Weight(name, *matrix.shape, "float32", "projection", (Layer(name, "linear"),))


@given(sizes, sizes, seeds, sides, st.data())
def test_a_truncation_of_a_truncation_is_one_of_the_weight(
    rows: int, cols: int, seed: int, side: Side, data: st.DataObject
) -> None:
    if side == "output" and rows > cols:
        rows, cols = cols, rows
    large = data.draw(st.integers(2, min(rows, cols)))
    small = data.draw(st.integers(1, large))
    weight = decaying(rows, cols, seed)
    gram = gram_of(weight, inputs(np.random.default_rng(seed), 60, cols, 50.0), side)
    chosen = directions(weight, gram)
    first, direct = chosen.truncate(weight, large), chosen.truncate(weight, small)
    again = thin_directions(first, gram).truncate(np.asarray(first.product()), small)
    assert np.allclose(again.product(), direct.product(), atol=1e-6 * np.abs(weight).max())


@given(sizes, sizes, seeds, st.integers(1, 3))
def test_thin_directions_are_those_of_the_product(rows: int, cols: int, seed: int, rank: int) -> None:
    """Whatever the factors look like, also after training: in no order, and not orthogonal."""
    rng = np.random.default_rng(seed)
    factors = Factors(rng.standard_normal((rows, rank)), rng.standard_normal((rank, cols)))
    gram = gram_of(np.zeros((rows, cols)), inputs(rng, 40, cols, 9.0))
    whole, thin = directions(factors.product(), gram), thin_directions(factors, gram)
    assert thin.basis.shape == (rows, rank)
    assert thin.energies == pytest.approx(whole.energies[:rank], rel=1e-6, abs=1e-9 * whole.energies[0])


def finished(
    seed: int, count: int = 3, gram: bool = True, keep: float = 0.6
) -> tuple[Analysis, tuple, CompressedWeights, dict[str, np.ndarray]]:
    """Some weights compressed by the knapsack to two factors, with Grams that serve as every fold."""
    matrices = {f"w{i}": decaying(12 + i, 10 + 3 * i, seed + i, 0.5 + 0.3 * i) for i in range(count)}
    grams = {}
    if gram:
        for i, (name, matrix) in enumerate(matrices.items()):
            found = gram_of(matrix, inputs(np.random.default_rng(seed + i), 80, matrix.shape[1], 20.0))
            grams[name] = Folds(found, found)
    records = tuple(analyze_weight(weight_of(n, m), m, grams.get(n)) for n, m in matrices.items())
    analysis = Analysis(records, grams=grams, fingerprint="f")
    plan = Knapsack(structures=("two_factor",)).select(analysis, Budget.params(keep))
    made = {
        o.group: Replacement("two_factor", analysis.truncated(o.group, matrices[o.group], o.rank))
        for o in plan.options
        if o.structure == "two_factor"
    }
    weights = {r.weight.name: r.weight for r in records}
    return analysis, plan.options, CompressedWeights(made, weights, Dense(matrices)), matrices


@settings(max_examples=10)
@given(seeds, st.booleans(), st.floats(0.2, 0.59))
def test_cutting_again_is_compressing_at_once(seed: int, gram: bool, budget: float) -> None:
    """Where nothing has changed the factors, ranks and products are those of the dense weights at the same budget, as
    far as no rank had been given up that would now be wanted."""
    analysis, options, held, matrices = finished(seed, gram=gram)
    left = remaining(analysis, options, held, {}, False)
    cut = Cutting(structures=("two_factor",)).select(left, Budget.params(budget))
    assert cut.keep_ratio <= budget
    direct = Knapsack(structures=("two_factor",)).select(analysis, Budget.params(budget))
    now = {o.group: o.cost for o in options}
    nested = all(o.cost <= now[o.group] for o in direct.options)
    for ours, theirs in zip(cut.options, direct.options, strict=True):
        assert ours.cost <= now[ours.group]
        if nested:
            assert (ours.structure, ours.rank) == (theirs.structure, theirs.rank)
        if ours.structure == "two_factor":
            made = recut(ours, left, held)[ours.group].factors
            want = analysis.truncated(ours.group, matrices[ours.group], ours.rank)
            assert np.allclose(made.product(), want.product(), atol=1e-6 * np.abs(want.product()).max())


@settings(max_examples=10)
@given(seeds, st.booleans())
def test_what_is_predicted_is_what_is_lost(seed: int, gram: bool) -> None:
    analysis, options, held, _ = finished(seed, gram=gram)
    left = remaining(analysis, options, held, {}, False)
    for option in options:
        if option.structure != "two_factor":
            continue
        name, before = option.group, held.read(option.group)
        for rank in range(1, option.rank + 1):
            after = left.truncated(name, before, rank).product()
            root = np.linalg.cholesky(analysis.grams[name].judge.moment) if gram else np.eye(before.shape[1])
            lost = np.square((before - after) @ root).sum() / np.square(before @ root).sum()
            assert left[name].error_curve[rank] == pytest.approx(lost, rel=1e-6, abs=1e-9)
        assert (left[name].error_curve[option.rank :] == 0).all()


@settings(max_examples=10)
@given(seeds, st.lists(st.floats(0.2, 0.59), min_size=2, max_size=4))
def test_less_is_never_better(seed: int, budgets: list[float]) -> None:
    analysis, options, held, _ = finished(seed)
    left = remaining(analysis, options, held, {}, False)
    found = [Cutting(structures=("two_factor",)).select(left, Budget.params(b)) for b in sorted(budgets)]
    lost = [
        sum(float(left.loss(left.groups[o.group], o.structure, np.array([o.error]), 1.0)[0]) for o in plan.options)
        for plan in found
    ]
    assert all(a >= b - 1e-9 for a, b in pairwise(lost))
    for plan, budget in zip(found, sorted(budgets), strict=True):
        assert plan.cost <= budget * analysis.dense_params


@pytest.mark.parametrize("kind", ["lowrank.core.cutting:Cutting", "lowrank.core.selection.recut:Cutting"])
def test_a_plan_of_a_cut_names_its_selector_as_before_and_can_be_cut(kind: str) -> None:
    """The second name was that of some weeks in which it was the place of the class."""
    analysis, options, held, _ = finished(0)
    left = remaining(analysis, options, held, {}, False)
    plan = Cutting(structures=("two_factor",), multiple=2).select(left, Budget.params(0.4))
    assert plan.selector["type"] == "lowrank.core.cutting:Cutting"
    old = {**plan.to_json(), "selector": {**plan.selector, "type": kind}}
    again = cutting_of(Plan.from_json(old, left, plan.budget))
    assert again == Cutting(structures=tuple(sorted({o.structure for o in plan.options} - {"dense"})), multiple=2)


@settings(max_examples=10)
@given(seeds)
def test_an_error_counts_what_was_lost_before(seed: int) -> None:
    analysis, options, held, _ = finished(seed)
    left = remaining(analysis, options, held, {}, False)
    limit = 1.3 * max(o.error for o in options) ** 0.5
    plan = Cutting(structures=("two_factor",)).select(left, Budget.error(limit))
    assert plan.cost <= sum(o.cost for o in options)
    for option in plan.options:
        assert analysis[option.group].error_curve[option.rank] <= limit**2 + 1e-9 or option.structure == "dense"


@given(sizes, sizes, seeds, st.data())
def test_channels_go_back_where_they_were(rows: int, cols: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(rows, cols) - 1))
    rng = np.random.default_rng(seed)
    plain = Factors(rng.standard_normal((rows, rank)), rng.standard_normal((rank, cols)))
    matrix, order, picks = plain.product(), rng.permutation(rows), rng.permutation(cols)
    moved = Factors(plain.left[order], plain.right[:, picks])
    for factors in (moved, pivot(moved)):
        held = Replacement("pivoted" if isinstance(factors, Pivoted) else "two_factor", factors, None, order, picks)
        weight = weight_of("w", matrix)
        thin = thin_of(held)
        assert thin is not None
        assert np.allclose(thin.product(), matrix, atol=1e-8)
        assert np.allclose(CompressedWeights({"w": held}, {"w": weight}, Dense({})).read("w"), matrix, atol=1e-8)
