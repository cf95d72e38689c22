"""Laws of pivoted factors, narrower heads, fewer neurons and the refit, on drawn matrices."""

from __future__ import annotations

import numpy as np
import pytest
from builders import decaying, inputs
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.structures.base import Replacement
from lowrank.core.structures.permute import agree_channel_order
from lowrank.core.truncation.attention import channel_curve, channels, pairs_of
from lowrank.core.truncation.directions import curved_curve, curved_directions, directions
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.truncation.neurons import neuron_curve, neuron_order, output_energy, refit
from lowrank.core.truncation.pivoted import Pivoted, Side, chosen_rows, combinations, pivot, pivoted_cost
from lowrank.core.truncation.refit import Joint, refitted
from lowrank.core.weight import Coupling, Weight

sizes = st.integers(2, 14)
seeds = st.integers(0, 1000)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def joint(x: np.ndarray, y: np.ndarray) -> Joint:
    return Joint(x.T @ x, y.T @ x, x.sum(0), y.sum(0), float((y**2).sum()), len(x))


@given(sizes, sizes, seeds, st.data())
def test_pivoting_changes_nothing_but_the_size(rows: int, cols: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(rows, cols)))
    factors = Factors(normal(rows, rank, seed=seed), normal(rank, cols, seed=seed + 1))
    made = pivot(factors)
    assert made.left.size + made.right.size == pivoted_cost(rows, cols, rank) <= rows * cols
    scale = np.linalg.norm(factors.left) * np.linalg.norm(factors.right)
    assert np.allclose(made.product(), factors.product(), atol=1e-9 * scale)
    # Combinations stay small, or float32 and integers would not survive them.
    assert np.abs(made.left).max(initial=0.0) <= 2.0**rank


@given(sizes, sizes, seeds)
def test_pivoting_survives_dependent_rows(rows: int, cols: int, seed: int) -> None:
    left = np.repeat(normal(rows, 1, seed=seed), min(rows, cols), 1)
    factors = Factors(left, normal(min(rows, cols), cols, seed=seed + 1))
    made = pivot(factors)
    assert np.isfinite(made.product()).all()
    assert np.allclose(made.product(), factors.product(), atol=1e-8 * max(1.0, float(np.abs(factors.product()).max())))


@given(st.sampled_from(["output", "input"]), st.booleans(), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_pivots_at_the_ends_of_heads(side: Side, last: bool, heads: int, each: int, seed: int) -> None:
    """Where the channels are in an agreed order, the matrix is the same without one being stored."""
    width, other, rank = 4, 9, heads * each
    rng = np.random.default_rng(seed)
    basis, coordinates = rng.standard_normal((heads * width, rank)), rng.standard_normal((rank, other))
    rows = chosen_rows(basis, heads)
    assert len(set(rows.tolist())) == rank
    assert (np.bincount(rows // width, minlength=heads) == each).all()
    place = np.isin(np.arange(heads * width), rows).reshape(heads, width)
    order = np.argsort(place if last else ~place, 1, kind="stable") + np.arange(heads)[:, None] * width
    ordered = basis[order.ravel()]
    kept = np.sort([list(order.ravel()).index(r) for r in rows])
    rest = np.setdiff1d(np.arange(heads * width), kept)
    combined = combinations(ordered, kept, rest, np.inf)
    assert combined is not None
    if side == "output":
        made = Pivoted(combined, ordered[kept] @ coordinates, None, side, heads, last)
    else:
        made = Pivoted((ordered[kept] @ coordinates).T, combined.T, None, side, heads, last)
    expected = ordered @ coordinates
    np.testing.assert_allclose(made.product(), expected if side == "output" else expected.T, atol=1e-8)


def test_rows_that_must_be_taken_are() -> None:
    basis = np.random.default_rng(0).standard_normal((12, 6))
    forced = np.zeros(12, bool)
    forced[[0, 7]] = True
    rows = chosen_rows(basis, 2, forced)
    assert {0, 7} <= set(rows.tolist()) and (np.bincount(rows // 6) == 3).all()
    allowed = np.arange(12) % 2 == 0
    assert set(chosen_rows(basis, 2, None, allowed).tolist()) == set(np.flatnonzero(allowed).tolist())
    assert combinations(np.ones((4, 2)), np.array([0, 1]), np.array([2, 3]), np.inf) is None


@given(st.integers(2, 8), seeds, st.data())
def test_scores_lose_the_smallest_singular_values(width: int, seed: int, data: st.DataObject) -> None:
    """Truncating `q'k` of independent tokens: the loss is that of the best rank-r approximation of `Q K'`."""
    rank = data.draw(st.integers(0, width))
    q, k = normal(30, width, seed=seed), normal(25, width, seed=seed + 1)
    outer, inner = (q.T @ q)[None], (k.T @ k)[None]
    made = channels(outer, inner)
    kept = q @ made.up[0][:, :rank] @ made.down[0][:rank] @ k.T
    values = np.linalg.svd(q @ k.T, compute_uv=False)
    best = (values[rank:] ** 2).sum()
    assert ((q @ k.T - kept) ** 2).sum() == pytest.approx(best, abs=1e-6 * (values**2).sum())
    curve = channel_curve(made, outer, inner)
    assert curve[rank] * (values**2).sum() == pytest.approx(best, abs=1e-6 * (values**2).sum())


def test_pairs_cover_every_channel_once() -> None:
    for kind in ("rotary_halves", "rotary_neighbours"):
        assert sorted(pairs_of(kind, 12).ravel()) == list(range(12))


def share_lost(last: np.ndarray, refitted: np.ndarray, kept: np.ndarray, moment: np.ndarray) -> float:
    """Of the output's energy, when some neurons are kept with other weights."""
    difference = last.copy()
    difference[:, kept] -= refitted
    return output_energy(difference, moment) / output_energy(last, moment)


@given(st.integers(3, 10), st.integers(2, 6), seeds, st.data())
def test_neurons_that_stay_are_refitted_best(count: int, outputs: int, seed: int, data: st.DataObject) -> None:
    x = np.maximum(normal(80, count, seed=seed), 0.0)
    last, moment = normal(outputs, count, seed=seed + 1), x.T @ x / len(x)
    order = neuron_order(last, moment)
    assert sorted(order) == list(range(count))
    kept = order[: data.draw(st.integers(1, count))]
    fitted = refit(last, moment, kept)
    lost = share_lost(last, fitted, kept, moment)
    best = np.linalg.lstsq(x[:, kept], x @ last.T, rcond=None)[0].T
    assert lost <= share_lost(last, best, kept, moment) + 1e-4
    assert lost <= share_lost(last, last[:, kept], kept, moment) + 1e-9
    ranks, errors = neuron_curve(last, order, moment, moment)
    assert ranks[-1] == count and errors[-1] == 0 and (np.diff(errors) <= 0).all()


def test_a_neuron_that_others_give_goes_first() -> None:
    x = normal(200, 5)
    x = np.column_stack([x, x[:, 0] + x[:, 1]])
    last = np.ones((4, 6)) + 0.1 * normal(4, 6, seed=1)
    moment = x.T @ x / len(x)
    kept = neuron_order(last, moment)[:5]
    assert share_lost(last, refit(last, moment, kept), kept, moment) < 1e-6


def test_dead_neurons_cost_nothing_and_zero_data_gives_an_order() -> None:
    moment = np.diag([1.0, 0.0, 2.0, 0.0])
    last = normal(3, 4)
    assert set(neuron_order(last, moment)[:2]) == {0, 2}
    assert sorted(neuron_order(last, np.zeros((4, 4)))) == [0, 1, 2, 3]
    assert (refit(last, np.zeros((4, 4)), np.array([0, 3])) == last[:, [0, 3]]).all()


@given(sizes, seeds, st.data())
def test_two_sided_truncation_is_best_in_its_metric(width: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, width))
    weight = normal(width, width + 2, seed=seed)
    x = normal(60, width + 2, seed=seed + 1) @ np.diag(np.linspace(0.2, 2, width + 2))
    gradients = normal(50, width, seed=seed + 2) @ np.diag(np.linspace(2, 0.1, width))
    curvature = gradients.T @ gradients / 50
    gram = Gram.of("input", x)
    chosen = curved_directions(weight, gram, curvature)
    small = chosen.truncate(weight, rank).product()
    shrunk = 0.7 * curvature + 0.3 * np.trace(curvature) / width * np.eye(width)
    root = np.linalg.cholesky(shrunk).T
    values = np.linalg.svd(root @ weight @ x.T, compute_uv=False)
    lost = np.linalg.norm(root @ (weight - small) @ x.T)
    assert lost <= np.sqrt((values[rank:] ** 2).sum()) + 2e-3 * values[0]
    curve = curved_curve(chosen, weight, gram)
    own = np.square(np.linalg.norm((weight - small) @ x.T) / np.linalg.norm(weight @ x.T))
    assert curve[0] == pytest.approx(1, abs=1e-6) and curve[-1] == pytest.approx(0, abs=1e-9)
    assert curve[rank] == pytest.approx(own, abs=1e-6)


def test_two_sided_truncation_without_curvature_is_one_sided() -> None:
    weight, gram = normal(6, 9), Gram.of("input", normal(40, 9, seed=1))
    there = curved_directions(weight, gram, np.eye(6)).truncate(weight, 3).product()
    assert np.allclose(there, directions(weight, gram).truncate(weight, 3).product(), atol=1e-9)


SHIFTED = [
    Replacement("two_factor", Factors(np.zeros((6, 3)), np.zeros((3, 8)))),
    Replacement("pivoted", Pivoted(np.zeros((3, 3)), np.zeros((3, 8)), np.arange(6))),
]


@pytest.mark.parametrize("replacement", SHIFTED, ids=lambda r: r.structure)
def test_refit_is_the_best_of_its_rank_on_the_inputs_that_are_seen(replacement: Replacement) -> None:
    """Reduced-rank regression: no matrix of the rank, the truncated weight included, does better on the fit."""
    weight, bias = decaying(6, 8), normal(6, seed=3)
    x = inputs(np.random.default_rng(0), 4000, 8, 10.0)
    seen = x + 0.3 * normal(4000, 8, seed=4) + 0.5
    y = x @ weight.T + bias
    fit, judge = (joint(seen[part], y[part]) for part in (slice(0, 3000), slice(3000, None)))
    found = refitted(replacement, weight, np.zeros(6), fit, judge)
    assert found is not None and found.structure == replacement.structure
    assert found.factors.rank == replacement.factors.rank
    made, shift = np.asarray(found.factors.product()), found.bias  # pyright: ignore[reportAttributeAccessIssue]
    assert shift is not None and np.linalg.matrix_rank(made) <= 3
    means = seen[:3000].mean(0), y[:3000].mean(0)
    full = np.linalg.lstsq(seen[:3000] - means[0], y[:3000] - means[1], rcond=None)[0].T
    spread = (seen[:3000] - means[0]) @ full.T
    kept = np.linalg.svd(spread, full_matrices=False)[2][:3]
    best = kept.T @ kept @ full
    assert fit.error(made, shift) <= 1.02 * fit.error(best, means[1] - best @ means[0])
    truncated = directions(weight, Gram.of("input", x)).truncate(weight, 3).product()
    assert judge.error(made, shift) < judge.error(np.asarray(truncated), bias)


def test_refit_leaves_what_it_cannot_make_better() -> None:
    weight = decaying(5, 5)
    x = normal(500, 5)
    exact = Replacement("neurons", Narrow(weight))
    both = joint(x, x @ weight.T)
    assert refitted(exact, weight, None, both, both) is None
    empty = joint(np.zeros((3, 5)), np.zeros((3, 5)))
    assert refitted(exact, weight, None, empty, empty) is None


@given(seeds)
def test_joint_moments_add_up(seed: int) -> None:
    x, y = normal(30, 4, seed=seed), normal(30, 3, seed=seed + 1)
    weight, bias = normal(3, 4, seed=seed + 2), normal(3, seed=seed + 3)
    whole = joint(x[:11], y[:11]) + joint(x[11:], y[11:])
    assert whole.error(weight, bias) == pytest.approx(((y - x @ weight.T - bias) ** 2).sum() / 30)


@pytest.mark.parametrize("heads", [1, 4])
def test_absorbing_survives_weights_of_less_rank_than_they_are_given(heads: int) -> None:
    """Pivots that carry nothing soundly keep their gather; the function stays what it was."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        true = int(rng.integers(1, 8))
        matrices = {
            "a": rng.standard_normal((24, 16)),
            "b": rng.standard_normal((16, true)) @ rng.standard_normal((true, 24)),
        }
        made = {}
        for name, matrix in matrices.items():
            made[name] = Replacement("pivoted", pivot(directions(matrix).truncate(matrix, 8)))

        class Numbers:
            def bias(self, _: str) -> None:
                return None

        coupling = Coupling("hidden" if heads == 1 else "value_output", ("a", "b"), heads, heads)
        free = agree_channel_order(made, (), [coupling], Numbers())  # type: ignore[arg-type]
        before, after = (m["b"].factors.product() @ m["a"].factors.product() for m in (made, free))  # type: ignore[union-attr]
        np.testing.assert_allclose(after, before, atol=1e-6 * max(np.abs(before).max(), 1))


def test_what_is_stored_in_16_bits_is_combined_with_small_numbers_only() -> None:
    def largest(dtype: str, seed: int) -> float:
        matrices = {"a": normal(24, 20, seed=seed), "b": normal(20, 24, seed=seed + 1)}
        weights = [Weight(name, *matrix.shape, dtype, "projection") for name, matrix in matrices.items()]
        made = {n: Replacement("pivoted", pivot(directions(m).truncate(m, 16))) for n, m in matrices.items()}

        class Numbers:
            def bias(self, _: str) -> None:
                return None

        free = agree_channel_order(made, weights, [Coupling("value_output", ("a", "b"), 8, 8)], Numbers())  # type: ignore[arg-type]
        factors = [r.factors for r in free.values() if isinstance(r.factors, Pivoted)]
        ordered = [f.left if f.side == "output" else f.right for f in factors if f.order is None]
        return max((float(np.abs(numbers).max()) for numbers in ordered), default=0.0)

    found = {dtype: [largest(dtype, seed) for seed in range(0, 40, 2)] for dtype in ("float32", "bfloat16", "float16")}
    assert max(found["bfloat16"]) <= 4 >= max(found["float16"])
    assert max(found["float32"]) > 4


def test_refit_leaves_out_ridges_that_rounding_has_made_singular() -> None:
    inputs_ = -np.eye(4) + np.diag([0, 0, 0, 1e4])
    joint = Joint(inputs_, np.zeros((3, 4)), np.zeros(4), np.zeros(3), 1.0, 1)
    weight = np.ones((3, 4))
    kept = Replacement("two_factor", directions(weight).truncate(weight, 1))
    found = refitted(kept, weight, None, joint, joint)
    assert found is None or np.isfinite(found.dense(Weight("w", 3, 4, "float32", "projection"))).all()
