"""Laws: what mathematics says must hold, on drawn matrices."""

from __future__ import annotations

import numpy as np
import pytest
from builders import decaying, gram_of, inputs, matrix_with
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.analysis import Folds
from lowrank.core.linalg.eigen import singular_values
from lowrank.core.truncation.directions import RIDGE, UNSEEN, directions, measure, residual_curve
from lowrank.core.truncation.gram import Gram, moment_of
from lowrank.core.truncation.spectrum import Spectrum
from lowrank.core.weight import Weight
from lowrank.core.weight_analysis import analyze_weight

sizes = st.integers(2, 14)
seeds = st.integers(0, 1000)
conditions = st.sampled_from([1.0, 1e3, 1e12, np.inf])
sides = st.sampled_from(["input", "output"])


def drawn(rows: int, cols: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, cols))


@given(sizes, sizes, seeds)
def test_singular_values_are_those_of_the_svd(rows: int, cols: int, seed: int) -> None:
    w = drawn(rows, cols, seed)
    expected = np.linalg.svd(w, compute_uv=False)
    assert np.allclose(singular_values(w), expected, atol=1e-7 * expected[0])


@given(sizes, sizes, seeds, st.data())
def test_eckart_young_in_the_plain_metric(rows: int, cols: int, seed: int, data: st.DataObject) -> None:
    w = drawn(rows, cols, seed)
    rank = data.draw(st.integers(1, min(rows, cols)))
    lost = np.linalg.norm(w - directions(w).truncate(w, rank).product())
    best = np.sqrt((np.linalg.svd(w, compute_uv=False)[rank:] ** 2).sum())
    assert lost == pytest.approx(best, abs=1e-7 * np.linalg.norm(w))
    assert Spectrum(singular_values(w)).relative_error(rank) == pytest.approx(best / np.linalg.norm(w), abs=1e-7)


@given(sizes, sizes, seeds, conditions, sides, st.data())
def test_eckart_young_in_the_metric_of_the_data(
    rows: int, cols: int, seed: int, condition: float, side: str, data: st.DataObject
) -> None:
    """The truncation's output error on the data is that of the best rank-r approximation of `W X`."""
    w = drawn(rows, cols, seed)
    x = inputs(np.random.default_rng(seed + 1), 4 * cols, cols, condition)
    rank = data.draw(st.integers(1, min(rows, cols)))
    factors = directions(w, gram_of(w, x, side)).truncate(w, rank)
    lost = np.linalg.norm(x @ (w - factors.product()).T)
    outputs = np.linalg.svd(x @ w.T, compute_uv=False)
    best = np.sqrt((outputs[rank:] ** 2).sum())
    # The ridge that orders unseen directions, and the square root of machine precision, are what is allowed.
    assert lost <= best + 2e-3 * outputs[0] * (best > 1e-6 * outputs[0]) + 2e-6 * outputs[0]


@given(sizes, sizes, seeds, conditions, sides)
def test_the_error_formula_equals_the_measured_error(
    rows: int, cols: int, seed: int, condition: float, side: str
) -> None:
    """On data that did not choose the directions, at every rank."""
    rng = np.random.default_rng(seed)
    w = drawn(rows, cols, seed)
    fit, held = inputs(rng, 3 * cols, cols, condition), inputs(rng, 2 * cols, cols, 10.0)
    chosen = directions(w, gram_of(w, fit, side))
    curve = residual_curve(chosen, w, gram_of(w, held, side))
    total = np.linalg.norm(held @ w.T) ** 2
    for rank in range(1, min(rows, cols) + 1):
        difference = held @ (w - chosen.truncate(w, rank).product()).T
        assert curve[rank] == pytest.approx(np.linalg.norm(difference) ** 2 / total, abs=1e-10)


@given(sizes, sizes, seeds, conditions, sides)
def test_full_rank_is_lossless(rows: int, cols: int, seed: int, condition: float, side: str) -> None:
    """Even where the data is singular: directions that no token reached are kept too."""
    w = drawn(rows, cols, seed)
    x = inputs(np.random.default_rng(seed), 3, cols, condition)
    factors = directions(w, gram_of(w, x, side)).truncate(w, min(rows, cols))
    assert np.allclose(factors.product(), w, atol=1e-9 * np.abs(w).max())


@given(sizes, sizes, seeds, conditions, sides)
def test_directions_are_orthonormal_and_curves_fall(
    rows: int, cols: int, seed: int, condition: float, side: str
) -> None:
    w = drawn(rows, cols, seed)
    x = inputs(np.random.default_rng(seed), 5 * cols, cols, condition)
    weight = Weight("w", rows, cols, "float64", "projection")
    gram = gram_of(w, x, side)
    basis = directions(w, gram).basis
    assert np.allclose(basis.T @ basis, np.eye(min(rows, cols)), atol=1e-10)
    curves = [analyze_weight(weight, w).error_curve, residual_curve(directions(w, gram), w, gram)]
    if side == "input" or rows <= cols:
        curves.append(analyze_weight(weight, w, Folds(gram, gram)).error_curve)
    else:
        with pytest.raises(ValueError, match="moments of its inputs"):
            measure(w, gram, gram)
    for curve in curves:
        assert curve[0] == pytest.approx(1.0)
        assert curve[-1] == pytest.approx(0.0, abs=1e-12)
        assert (np.diff(curve) <= 1e-12).all()


@given(sizes, sizes, seeds)
def test_both_sides_choose_the_same_truncation(rows: int, cols: int, seed: int) -> None:
    """The Gram of the inputs and that of the outputs carry the same information for truncation."""
    w = drawn(rows, cols, seed)
    x = inputs(np.random.default_rng(seed), 6 * cols, cols, 100.0)
    rank = max(1, min(rows, cols) // 2)
    a, b = (directions(w, gram_of(w, x, side)).truncate(w, rank).product() for side in ("input", "output"))
    lost = [np.linalg.norm(x @ (w - p).T) for p in (a, b)]
    assert lost[0] == pytest.approx(lost[1], rel=1e-6, abs=1e-8 * np.linalg.norm(x @ w.T))


@given(sizes, seeds, st.floats(1e-3, 1e3))
def test_scaling_and_rotation_do_not_change_relative_errors(size: int, seed: int, scale: float) -> None:
    w = decaying(size, size, seed)
    rotation = matrix_with(np.ones(size), size, size, seed + 1)
    before = Spectrum(singular_values(w)).tail_energy
    assert np.allclose(before, Spectrum(singular_values(scale * rotation @ w)).tail_energy, atol=1e-7)


@given(sizes, seeds, st.integers(1, 5))
def test_grams_add(width: int, seed: int, parts: int) -> None:
    x = np.random.default_rng(seed).standard_normal((20, width))
    whole, total = Gram.of("input", x), Gram.zeros(Weight("w", width, width, "float64", "projection"))
    for part in np.array_split(x, parts):
        total = total + Gram.of("input", part)
    assert np.allclose(whole.moment, total.moment)
    assert (whole.tokens, whole.nonfinite) == (total.tokens, total.nonfinite)
    assert whole.energy == pytest.approx(total.energy)


@given(sizes, seeds, st.integers(1, 5))
def test_tokens_add_as_their_grams_do(width: int, seed: int, parts: int) -> None:
    """In the place of the sum, whether there are more tokens than numbers in each or fewer; those not finite apart."""
    x = np.random.default_rng(seed).standard_normal((20, width))
    x[3, 0] = np.nan
    total = Gram("input", np.zeros((width, width)), total=np.zeros(width))
    for part in np.array_split(x, parts):
        total = moment_of("input", part).added_to(total)
    sound = np.delete(x, 3, 0)
    assert np.allclose(total.mirrored().moment, sound.T @ sound) and np.allclose(total.total, sound.sum(0))
    assert (total.tokens, total.nonfinite) == (19, 1) and total.energy == pytest.approx(np.square(sound).sum())


def test_heldout_error_is_unbiased_where_the_in_sample_error_is_not() -> None:
    """Few tokens: the error on the fold that chose the directions is far too good, the held-out one is right."""
    rng = np.random.default_rng(0)
    width, rank = 64, 32
    w = rng.standard_normal((width, width))
    fit, held, truth = (rng.standard_normal((n, width)) for n in (80, 400, 20000))
    chosen = directions(w, Gram.of("input", fit))
    true = residual_curve(chosen, w, Gram.of("input", truth))[rank]
    in_sample = residual_curve(chosen, w, Gram.of("input", fit))[rank]
    heldout = residual_curve(chosen, w, Gram.of("input", held))[rank]
    assert in_sample < 0.8 * true
    assert heldout == pytest.approx(true, rel=0.05)


def test_nonfinite_tokens_are_counted_and_never_averaged_in() -> None:
    x = np.ones((5, 3))
    x[1, 0], x[3, 2] = np.nan, np.inf
    gram = Gram.of("input", x)
    assert (gram.tokens, gram.nonfinite) == (3, 2)
    assert np.array_equal(gram.moment, np.full((3, 3), 3.0))


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (5, 5)])
def test_zero_and_rank_one_matrices(shape: tuple[int, int]) -> None:
    zero = Spectrum(singular_values(np.zeros(shape)))
    assert (zero.stable_rank, zero.effective_rank, zero.rank_at_energy(0.99)) == (0.0, 0.0, 0)
    one = Spectrum(singular_values(np.outer(np.ones(shape[0]), np.ones(shape[1]))))
    assert one.stable_rank == pytest.approx(1.0, abs=1e-6)
    assert one.rank_at_energy(0.99) == 1


def test_figures_of_a_known_spectrum() -> None:
    spectrum = Spectrum(np.array([2.0, 1.0, 1.0]))
    assert spectrum.stable_rank == pytest.approx(1.5)
    assert spectrum.effective_rank == pytest.approx(np.exp(0.5 * np.log(2) + 0.5 * np.log(4)))
    assert spectrum.rank_at_energy(0.6) == 1
    assert spectrum.rank_at_energy(0.9) == 3
    assert spectrum.relative_error(1) == pytest.approx(np.sqrt(2 / 6))


@given(sizes, sizes, seeds, conditions)
def test_the_analysis_measures_what_factorising_gives(rows: int, cols: int, seed: int, condition: float) -> None:
    """The fast path without directions agrees with the directions themselves: spectra, and errors on other data."""
    w = drawn(rows, cols, seed)
    rng = np.random.default_rng(seed)
    side = "output" if rows < cols else "input"
    fit, held = (gram_of(w, inputs(rng, 4 * cols, cols, c), side) for c in (condition, 10.0))
    found, chosen = measure(w, fit, held), directions(w, fit)
    assert np.allclose(found.plain, singular_values(w), atol=1e-7 * found.plain[0])
    assert np.allclose(found.activation, np.sqrt(chosen.energies), atol=1e-6 * found.activation[0])
    assert found.curve[0] == pytest.approx(1.0) and found.curve[-1] == pytest.approx(0.0, abs=1e-12)
    # Where eigenvalues are not apart, directions may differ and lose the same on the data that chose them.
    same = measure(w, fit, fit).curve
    assert np.allclose(same, residual_curve(chosen, w, fit), atol=1e-6)
    if condition == 1.0:
        assert np.allclose(found.curve, residual_curve(chosen, w, held), atol=1e-6)


def test_rows_that_are_read_often_are_kept_best_and_unread_ones_not_lost() -> None:
    """A lookup is a product with a one-hot vector: rows count as often as they are read, and a little anyhow."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((12, 60))
    counts = np.concatenate([np.full(6, 50), np.full(24, 1), np.zeros(30, int)])
    seen = np.repeat(table, counts, axis=1).T
    gram = Gram.of("output", seen, float(len(seen)))

    def lost(share: float | None) -> np.ndarray:
        order = directions(table) if share is None else directions(table, gram, ridge=share)
        difference = table - order.truncate(table, 6).product()
        return np.array([(difference[:, part] ** 2).mean() for part in (slice(0, 6), slice(6, 30), slice(30, 60))])

    often, once, never = zip(lost(None), lost(RIDGE), lost(UNSEEN), strict=True)
    assert often[1] < 0.01 * often[0] and often[2] < 0.1 * often[0]
    assert never[2] < never[1]
    assert once[2] > often[2]
