"""Numerics under stress: what holds for matrices and data that no trained model should have, and some do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from builders import matrix_with
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.analysis import Folds, ridge_of
from lowrank.core.linalg.eigen import magnitude, singular_values, solve_positive
from lowrank.core.truncation.directions import directions, measure, residual_curve
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.pivoted import pivot
from lowrank.core.truncation.spectrum import Spectrum
from lowrank.core.weight import Layer, Weight
from lowrank.core.weight_analysis import analyze_weight

TAIL = 1e-13
"""Of all energy: how exact a tail is. Eigenvalues of the Gram matrix are good to a few units in the last place of the
largest one, and up to 14 of them are added."""
LOSSLESS = 1e-13
"""Of the norm of the weight, at full rank: a projection on an orthonormal basis."""

Draw = Callable[[int, int, np.random.Generator], np.ndarray]


def _with(values: Callable[[int], np.ndarray]) -> Draw:
    return lambda rows, cols, rng: matrix_with(values(min(rows, cols)), rows, cols, int(rng.integers(1000)))


def _dead(rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    found = rng.standard_normal((rows, cols))
    found[:, ::2] = 0
    found[1::3] = 0
    return found


WEIGHTS: dict[str, Draw] = {
    "plain": lambda r, c, g: g.standard_normal((r, c)),
    "one huge singular value": _with(lambda k: np.concatenate([[1e12], np.ones(k - 1)])),
    "zero": lambda r, c, g: np.zeros((r, c)),
    "one number": lambda r, c, g: np.eye(r, c) * (np.arange(c) == 0),
    "rank one": lambda r, c, g: np.outer(g.standard_normal(r), g.standard_normal(c)),
    "denormal float64": lambda r, c, g: g.integers(-9, 10, (r, c)) * 5e-324,
    "denormal float32": lambda r, c, g: g.integers(-9, 10, (r, c)) * 2.0**-149,
    "denormal float16": lambda r, c, g: g.integers(-9, 10, (r, c)) * 2.0**-24,
    "near the end of float64": lambda r, c, g: g.uniform(-1e307, 1e307, (r, c)),
    "near the end of float32": lambda r, c, g: g.uniform(-3e37, 3e37, (r, c)),
    "near the end of float16": lambda r, c, g: np.full((r, c), 60000.0) + g.integers(-99, 99, (r, c)) * 32,
    "condition 1e15": _with(lambda k: np.logspace(0, -15, k)),
    "dead channels": _dead,
    "equal rows": lambda r, c, g: np.repeat(g.standard_normal((1, c)), r, 0),
}
FLOAT32 = [name for name in WEIGHTS if "float64" not in name]

DATA: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "plain": lambda c, g: g.standard_normal((60, c)),
    "condition 1e15": lambda c, g: g.standard_normal((60, c)) * np.logspace(0, -7.5, c),
    "an outlier channel": lambda c, g: g.standard_normal((60, c)) * np.where(np.arange(c) == 0, 1e5, 1.0),
    "dead channels": lambda c, g: g.standard_normal((60, c)) * (np.arange(c) % 2),
    "one token": lambda c, g: g.standard_normal((1, c)),
    "one token again and again": lambda c, g: np.repeat(g.standard_normal((1, c)), 60, 0),
    "zeros": lambda c, g: np.zeros((60, c)),
    "denormal float32": lambda c, g: g.integers(-9, 10, (60, c)) * 2.0**-149,
}

shapes = st.one_of(
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.tuples(st.just(1), st.integers(1, 200)),
    st.tuples(st.integers(1, 200), st.just(1)),
)
seeds = st.integers(0, 1000)


def falls(curve: np.ndarray) -> bool:
    """From 1 to 0, never rising; or zeros, where there is nothing to lose."""
    if not curve.any():
        return True
    return bool(curve[0] == 1 and abs(curve[-1]) <= TAIL and (np.diff(curve) <= TAIL).all() and (curve >= 0).all())


@pytest.mark.parametrize("kind", WEIGHTS)
@given(shapes, seeds)
def test_plain_spectra_tails_and_factors(kind: str, shape: tuple[int, int], seed: int) -> None:
    """Eckart and Young at every rank, whatever the size of the numbers: by formula, and of the factors themselves."""
    w = WEIGHTS[kind](*shape, np.random.default_rng(seed))
    scale = magnitude(w)
    unit = w / scale
    true = np.linalg.svd(unit, compute_uv=False)
    found = singular_values(w)
    assert np.isfinite(found).all()
    # Below the normal numbers, singular values too are rounded to multiples of the smallest.
    grain = 5e-324 / scale
    assert np.abs(found / scale - true).max() <= 1e-7 * true[0] + grain
    curve = analyze_weight(Weight("w", *shape, "float64", "projection"), w).error_curve
    assert falls(curve)
    total = float((true**2).sum())
    chosen = directions(w)
    for rank in range(len(true) + 1):
        best = float((true[rank:] ** 2).sum()) / total if total else 0.0
        assert abs(curve[rank] - best) <= TAIL + 4 * grain
        if rank:
            factors = chosen.truncate(unit, rank)
            lost = float(np.square(unit - factors.product()).sum()) / total if total else 0.0
            assert abs(lost - best) <= TAIL
    full = chosen.truncate(w, len(true))
    assert np.isfinite(full.left).all() and np.isfinite(full.right).all()
    rest = (w - full.product()) / scale
    assert np.linalg.norm(rest) <= LOSSLESS * np.linalg.norm(unit) + grain * np.sqrt(w.size)


@given(shapes, seeds, st.sampled_from(list(WEIGHTS)), st.integers(-900, 900))
def test_powers_of_two_change_nothing(shape: tuple[int, int], seed: int, kind: str, power: int) -> None:
    """Scaling is exact: the same curve and the same directions, bit for bit."""
    w = WEIGHTS[kind](*shape, np.random.default_rng(seed))
    w = w / magnitude(w)
    w[np.abs(w) < 2.0**-60] = 0
    moved = np.ldexp(w, power)
    assert (directions(w).basis == directions(moved).basis).all()
    assert (np.ldexp(singular_values(w), power) == singular_values(moved)).all()
    weight = Weight("w", *shape, "float64", "projection")
    assert (analyze_weight(weight, w).error_curve == analyze_weight(weight, moved).error_curve).all()


@pytest.mark.parametrize("data", DATA)
@given(shapes, seeds, st.sampled_from(FLOAT32))
def test_spectra_tails_and_factors_in_the_metric_of_data(
    data: str, shape: tuple[int, int], seed: int, kind: str
) -> None:
    """All float32 weights on all float32 data: finite, falling from 1 to 0, right, and lossless at full rank."""
    rows, cols = shape
    rng = np.random.default_rng(seed)
    w, fit, held = WEIGHTS[kind](rows, cols, rng), DATA[data](cols, rng), DATA[data](cols, rng)
    side = "output" if rows < cols else "input"
    folds = Folds(*(_gram(w, x, side) for x in (fit, held)))
    record = analyze_weight(Weight("w", rows, cols, "float32", "projection"), w, folds)
    assert falls(record.error_curve)
    for spectrum in (record.plain, record.activation):
        assert spectrum is None or (np.isfinite(spectrum.values).all() and falls(spectrum.tail_energy))
    # What the layer never reads tells nothing: the plain metric decides.
    assert (record.activation is None) == (not fit.any())
    if record.activation is None:
        assert (record.error_curve == Spectrum(singular_values(w)).tail_energy).all()
    chosen = directions(w, folds.fit)
    assert np.abs(chosen.basis.T @ chosen.basis - np.eye(min(shape))).max() <= 1e-12
    full = chosen.truncate(w, min(shape))
    assert np.linalg.norm((w - full.product()) / magnitude(w)) <= LOSSLESS * np.linalg.norm(w / magnitude(w))
    if record.activation is not None:
        outputs = (fit @ (w / magnitude(w)).T) / magnitude(fit)
        total = float(np.square(outputs).sum())
        same = measure(w, folds.fit, folds.fit).curve
        for rank in range(1, min(shape) + 1):
            kept = chosen.truncate(w / magnitude(w), rank).product()
            lost = float(np.square((fit / magnitude(fit)) @ (w / magnitude(w) - kept).T).sum())
            # The ridge, a millionth, may choose between what the data hardly tells apart.
            assert abs(lost - same[rank] * total) <= 1e-5 * total


def _gram(w: np.ndarray, x: np.ndarray, side: str) -> Gram:
    return Gram.of("input", x) if side == "input" else Gram.of("output", x @ w.T, float(np.square(x).sum()))


TYPES = {
    "float16": (torch.float16, 2.0**-11),
    "bfloat16": (torch.bfloat16, 2.0**-8),
    "float32": (torch.float32, 2.0**-24),
}


@pytest.mark.parametrize("dtype", TYPES)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), seeds, st.sampled_from(FLOAT32))
def test_factors_survive_the_type_that_the_weight_had(dtype: str, shape: tuple[int, int], seed: int, kind: str) -> None:
    """What a type holds as a matrix it holds as factors: finite, and as exact as rounding two factors can be."""
    kept, unit = TYPES[dtype]
    w = WEIGHTS[kind](*shape, np.random.default_rng(seed))
    stored = torch.from_numpy(w).to(kept)
    if not torch.isfinite(stored).all():
        return
    w = stored.double().numpy()
    factors = directions(w).truncate(w, min(shape))
    left, right = (
        torch.from_numpy(np.ascontiguousarray(f)).to(kept).double().numpy() for f in (factors.left, factors.right)
    )
    assert np.isfinite(left).all() and np.isfinite(right).all()
    lost = np.linalg.norm((w - left @ right) / magnitude(w))
    assert lost <= 4 * unit * np.sqrt(min(shape)) * np.linalg.norm(w / magnitude(w)) + LOSSLESS
    made = pivot(directions(w).truncate(w, min(shape)))
    assert torch.isfinite(torch.from_numpy(made.left).to(kept)).all()


@given(st.floats(-300, 300), st.floats(-300, 300), seeds)
def test_balancing_is_exact_and_keeps_usual_factors(high: float, low: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = 2.0**high * rng.uniform(0.5, 1, (4, 2)), 2.0**low * rng.uniform(0.5, 1, (2, 5))
    made = Factors(left, right).balanced()
    assert (made.product() == Factors(left, right).product()).all()
    if abs(high + low) < 18:
        assert all(2.0**-12 <= np.abs(each).max() <= 2.0**12 for each in (made.left, made.right))
    usual = Factors(rng.uniform(0.5, 1, (4, 2)), rng.uniform(0.5, 1, (2, 5)))
    assert usual.balanced() is usual
    zero = Factors(left, np.zeros((2, 5)))
    assert zero.balanced() is zero


def test_two_sided_factors_of_a_tiny_curvature_fit_float16() -> None:
    """Gradients are small: the root of their moment must not end up in one factor alone."""
    from lowrank.core.truncation.directions import curved_directions

    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((6, 9)), rng.standard_normal((50, 9))
    for size in (1e-16, 1.0, 1e16):
        gradients = size * rng.standard_normal((40, 6)) * np.logspace(0, -2, 6)
        factors = curved_directions(w, Gram.of("input", x), gradients.T @ gradients / 40).truncate(w, 6)
        assert np.abs(factors.product() - w).max() < 1e-9
        for each in (factors.left, factors.right):
            assert 1e-4 < np.abs(each).max() < 6e4


def test_activations_that_overflow_are_counted_and_never_averaged_in() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 8)) * np.logspace(0, 5, 200)[:, None]
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    sound = np.isfinite(half).all(1)
    assert 0 < sound.sum() < 200
    gram, alone = Gram.of("input", half), Gram.of("input", half[sound])
    assert gram.nonfinite == (~sound).sum() and gram.tokens == sound.sum()
    assert (gram.moment == alone.moment).all() and gram.energy == alone.energy
    assert gram.total is not None and alone.total is not None and (gram.total == alone.total).all()
    # Squares that leave float64 are as useless as infinity.
    assert Gram.of("input", np.array([[1e200, 1.0], [1.0, 2.0]])).nonfinite == 1
    w = rng.standard_normal((8, 8))
    assert (directions(w, gram).basis == directions(w, alone).basis).all()


@given(st.integers(1, 12), seeds, st.floats(-12, 12), st.booleans())
def test_positive_systems_that_rounding_made_indefinite(size: int, seed: int, power: float, broken: bool) -> None:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((size, size))
    matrix, right = 10.0**power * (root @ root.T), rng.standard_normal((size, 3))
    if broken:
        matrix = 10.0**power * np.ones((size, size)) - 1e-16 * 10.0**power * np.eye(size)
        right = matrix @ right
    found = solve_positive(matrix, right)
    assert np.isfinite(found).all()
    if broken or np.linalg.cond(matrix) < 1e8:
        assert np.linalg.norm(matrix @ found - right) <= 1e-6 * np.linalg.norm(right)


def test_duplicated_layers_have_one_result() -> None:
    """Bit for bit, whatever stands between them."""
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((20, 30)), rng.standard_normal((100, 30))
    records = []
    for i in range(3):
        folds = Folds(_gram(w, x[:80], "output"), _gram(w, x[80:], "output"))
        records.append(analyze_weight(Weight(f"layer.{i}", 20, 30, "float32", "projection"), w.copy(), folds))
        analyze_weight(Weight("other", 30, 20, "float32", "projection"), rng.standard_normal((30, 20)))
    for other in records[1:]:
        assert (other.plain.values == records[0].plain.values).all()
        assert (other.error_curve == records[0].error_curve).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(384, 50_000), (50_000, 384)])
def test_a_table_of_50000_rows_takes_little_more_memory_than_itself(shape: tuple[int, int]) -> None:
    """Never a 50,000 x 50,000 matrix (20 GB): a few copies of the table at most, and moments of 384 x 384."""
    import tracemalloc

    rows, cols = shape
    layers = (Layer("table", "lookup" if rows < cols else "linear"),)
    weight = Weight("table", rows, cols, "float32", "embedding", layers)
    w = np.random.default_rng(0).standard_normal(shape)
    empty = Gram.zeros(weight)
    assert empty.moment.shape == (384, 384)
    x = w[:, :500].T if empty.side == "output" else np.random.default_rng(1).standard_normal((500, cols))
    tracemalloc.start()
    try:
        folds = Folds(Gram.of(empty.side, x[:400], 400.0), Gram.of(empty.side, x[400:], 100.0))
        record = analyze_weight(weight, w, folds)
        chosen = directions(w, folds.fit, ridge=ridge_of(weight))
        factors = chosen.truncate(w, 64)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 5 * w.nbytes
    assert falls(record.error_curve) and len(record.error_curve) == 385
    assert np.allclose(residual_curve(chosen, w, folds.judge), record.error_curve, atol=1e-6)
    assert factors.left.shape == (rows, 64) and factors.right.shape == (64, cols)


def test_tails_of_a_huge_condition_are_exact() -> None:
    """Of singular values down to 1e-15 of the largest: each tail to 1e-13 of all energy, none of them negative."""
    values = np.logspace(0, -15, 64)
    curve = Spectrum(singular_values(matrix_with(values, 64, 80))).tail_energy
    true = np.append(np.cumsum((values**2)[::-1])[::-1], 0.0)
    assert np.abs(curve - true / true[0]).max() <= TAIL and (curve >= 0).all()
