"""LAPACK drivers that fail: the next one is taken and named, and after the last there is an error, never a number."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from builders import inputs, matrix_with, trained_blocks
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.analysis import Folds
from lowrank.core.linalg import drivers as solvers
from lowrank.core.linalg import lapack
from lowrank.core.linalg.drivers import Fallback, watched_solvers
from lowrank.core.linalg.eigen import eigh_descending, eigvalsh_descending
from lowrank.core.truncation.directions import directions
from lowrank.core.truncation.gram import Gram
from lowrank.core.weight import Weight
from lowrank.core.weight_analysis import analyze_weight
from lowrank.errors import DecompositionError
from lowrank.parallel import windowed_map

SAME = 1e-13
"""Of the largest eigenvalue: what drivers may differ by."""

Break = Callable[[str, Any], None]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Breaks the LAPACK calls of a driver: with an exception, or with what it is to return of the true result."""

    def breaks(driver: str, how: Any) -> None:
        calls = {"syevd": [(lapack, "syevd")], "gesdd": [(np.linalg, "svd")]}
        for module, name in calls.get(driver, [(solvers._lapack, "svd")]):
            true = getattr(module, name)

            def fails(*args: Any, _true: Any = true, **kwargs: Any) -> Any:
                if how is np.linalg.LinAlgError:
                    raise how("did not converge")
                return how(_true(*args, **kwargs))

            monkeypatch.setattr(module, name, fails)

    return breaks


def _spoiled(number: float) -> Callable[[Any], Any]:
    """A driver that returns without an error, with one number of its result replaced."""

    def spoil(result: Any) -> Any:
        parts = list(result) if isinstance(result, tuple) else [result]
        values = next(p for p in parts if p.ndim == 1)
        values[len(values) // 2] = number
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts) if len(parts) > 1 else parts[0]

    return spoil


def _no_vectors(result: Any) -> Any:
    """Sound values with vectors that hold a NaN."""
    if not isinstance(result, tuple):
        return result
    for part in result:
        if part.ndim == 2:
            part[0, 0] = np.nan
    return result


FAULTS = {
    "an error": np.linalg.LinAlgError,
    "a NaN": _spoiled(np.nan),
    "an infinity": _spoiled(np.inf),
    "another number": _spoiled(1e3),
}


def moment(seed: int = 0, rank: int = 9) -> np.ndarray:
    values = np.concatenate([np.logspace(0, -2, rank), np.zeros(9 - rank)])
    root = matrix_with(values, 9, 12, seed)
    return root @ root.T


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("drivers", [("syevd",), ("syevd", "gesdd")])
def test_the_next_driver_gives_the_same_and_is_named(broken: Break, drivers: tuple[str, ...], fault: str) -> None:
    cases = [(rank, moment(rank=rank)) for rank in (9, 4)]
    usual = [eigh_descending(matrix) for _, matrix in cases]
    for driver in drivers:
        broken(driver, FAULTS[fault])
    last = {1: "gesdd", 2: "gesvd"}[len(drivers)]
    for (rank, matrix), (values, vectors) in zip(cases, usual, strict=True):
        with watched_solvers() as used:
            others, found = eigh_descending(matrix, name="layer.7")
            alone = eigvalsh_descending(matrix, name="layer.8")
        assert used == [Fallback("layer.7", last), Fallback("layer.8", last)]
        assert np.abs(others - values).max() <= SAME and np.abs(alone - values).max() <= SAME
        assert (others >= 0).all() and (np.diff(others) <= 0).all()
        assert np.abs(found.T @ found - np.eye(9)).max() <= 1e-12
        kept, other = vectors[:, :rank], found[:, :rank]
        assert np.abs(other @ other.T - kept @ kept.T).max() <= 1e-9


@pytest.mark.parametrize("fault", FAULTS)
def test_when_all_fail_there_is_an_error_with_the_name(broken: Break, fault: str) -> None:
    for driver in ("syevd", "gesdd", "gesvd"):
        broken(driver, FAULTS[fault])
    for solve in (eigh_descending, eigvalsh_descending):
        with pytest.raises(DecompositionError, match=r"layer\.7: .*9 x 9.*syevd, gesdd, gesvd.*--exclude"):
            solve(moment(), name="layer.7")
    weight = Weight("layer.9", 9, 12, "float32", "projection")
    with pytest.raises(DecompositionError, match="layer.9"):
        analyze_weight(weight, matrix_with(np.ones(9), 9, 12))


def test_vectors_that_are_not_finite_count_as_not_converged(broken: Break) -> None:
    broken("syevd", _no_vectors)
    broken("gesdd", _no_vectors)
    with watched_solvers() as used:
        _, vectors = eigh_descending(moment(), name="w")
    assert np.isfinite(vectors).all() and used == [Fallback("w", "gesvd")]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_moment_that_is_not_finite_is_refused_before_lapack_sees_it(broken: Break, number: float) -> None:
    def never(_: Any) -> Any:
        raise AssertionError("it was called")

    for driver in ("syevd", "gesdd", "gesvd"):
        broken(driver, never)
    matrix = moment()
    matrix[3, 2] = number
    for solve in (eigh_descending, eigvalsh_descending):
        with pytest.raises(DecompositionError, match="layer.7: .*NaN or infinity"):
            solve(matrix, name="layer.7")


@given(st.integers(1, 10), st.integers(0, 1000), st.integers(0, 10))
def test_singular_vectors_are_eigenvectors(size: int, seed: int, rank: int) -> None:
    """Also of a matrix that rounding has given some negative eigenvalues: they are small, and become zero."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((size, min(rank, size)))
    matrix = root @ root.T
    matrix = matrix + 1e-16 * rng.standard_normal((size, size)) * np.abs(matrix).max()
    largest = max(float(np.abs(matrix).max()), 1e-300)
    for solve in (solvers._gesdd, solvers._gesvd):
        values, vectors = solve(matrix, True)
        assert vectors is not None
        lower = np.tril(matrix) + np.tril(matrix, -1).T
        assert np.abs((vectors * values) @ vectors.T - lower).max() <= 1e-14 * size * size * largest
        assert np.abs(np.sort(values) - np.linalg.eigvalsh(lower)).max() <= 1e-14 * size * size * largest


def test_an_analysis_with_another_driver_is_the_same(broken: Break) -> None:
    """Spectra, curve and truncation; singular values near zero to the square root of machine precision."""
    rng = np.random.default_rng(0)
    w, x = matrix_with(np.logspace(0, -2, 12), 20, 12), inputs(rng, 200, 12, 30.0)
    weight, folds = Weight("w", 20, 12, "float32", "projection"), Folds(Gram.of("input", x), Gram.of("input", x))
    before, kept = analyze_weight(weight, w, folds), directions(w, folds.fit).truncate(w, 5).product()
    broken("syevd", np.linalg.LinAlgError)
    after = analyze_weight(weight, w, folds)
    assert np.abs(after.plain.values - before.plain.values).max() <= 1e-7
    assert np.abs(after.error_curve - before.error_curve).max() <= 1e-12
    assert np.abs(directions(w, folds.fit).truncate(w, 5).product() - kept).max() <= 1e-9


def test_blocks_see_their_own_fallbacks_alone(broken: Break) -> None:
    broken("syevd", np.linalg.LinAlgError)

    def job(name: str) -> list[Fallback]:
        with watched_solvers() as used:
            eigvalsh_descending(moment(), name=name)
        return used

    names = [f"w{i}" for i in range(16)]
    with watched_solvers() as all_of_them, ThreadPoolExecutor(8) as pool:
        found = list(windowed_map(job, names, pool))
    assert found == [[Fallback(name, "gesdd")] for name in names]
    assert sorted(each.name for each in all_of_them) == sorted(names)
    with watched_solvers() as nothing:
        pass
    eigvalsh_descending(moment())
    assert nothing == []


def test_the_user_learns_of_it(broken: Break) -> None:
    import lowrank

    settings = lowrank.Settings(calib="none")
    usual = lowrank.analyze(trained_blocks(), settings=settings)
    assert not any("LAPACK" in note for note in usual.notes)
    broken("syevd", np.linalg.LinAlgError)
    torch.manual_seed(0)
    found = lowrank.analyze(trained_blocks(), settings=settings)
    (note,) = [note for note in found.notes if "LAPACK" in note]
    assert "4 weights" in note and "gesdd" in note and "layers.0.up" in note
    for name in ("gesdd", "gesvd"):
        broken(name, np.linalg.LinAlgError)
    with pytest.raises(DecompositionError, match="layers.0.up"):
        lowrank.analyze(trained_blocks(), settings=settings)
