"""The measures of how far outputs are from each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from lowrank.core.distance import (
    OutputKind,
    Reference,
    cosines,
    log_probabilities,
    pooled,
    unit,
)

KINDS: list[OutputKind] = ["logits", "embedding", "hidden"]


@given(st.integers(0, 1000), st.sampled_from(KINDS))
def test_only_other_outputs_lose(seed: int, kind: OutputKind) -> None:
    rng = np.random.default_rng(seed)
    dense = [rng.standard_normal((2, 3, 5)), rng.standard_normal((1, 4, 5))]
    reference = Reference(dense, kind)
    assert reference.loss(dense) == pytest.approx(0, abs=1e-12)
    near, far = ([y + size * rng.standard_normal(y.shape) for y in dense] for size in (1e-3, 1.0))
    assert 0 < reference.loss(near) < reference.loss(far)
    assert reference.loss([np.full_like(y, np.nan) for y in dense]) == np.inf


def test_measures_do_not_see_what_does_not_matter() -> None:
    y = [np.random.default_rng(0).standard_normal((2, 3, 5))]
    assert Reference(y, "logits").loss([y[0] + 7.0]) == pytest.approx(0, abs=1e-12)
    assert Reference(y, "embedding").loss([y[0] * 7.0]) == pytest.approx(0, abs=1e-12)
    assert Reference(y, "hidden").loss([y[0] * 0.0]) == pytest.approx(1)


def test_divergence_is_that_of_the_distributions() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    divergence = Reference([np.log(p)[None]], "logits").loss([np.log(q)[None]])
    assert divergence == pytest.approx(float((p * np.log(p / q)).sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_the_dense_model_gives_as_nan_are_compared_with_nothing(kind: OutputKind) -> None:
    rng = np.random.default_rng(0)
    dense, other = rng.standard_normal((2, 8, 3, 5))
    sound = np.ones(8, bool)
    sound[[1, 4]] = False
    alone = Reference([dense[sound]], kind).loss([other[sound]])
    broken = dense.copy()
    broken[~sound] = np.nan
    assert Reference([broken], kind).loss([other]) == pytest.approx(alone, rel=1e-12)
    worse = other.copy()
    worse[0] = np.inf
    assert Reference([broken], kind).loss([worse]) == np.inf


@given(st.integers(0, 1000), st.sampled_from([np.float32, np.float64]), st.floats(0.1, 1e4))
def test_log_probabilities_are_those_of_scipy(seed: int, dtype: type[np.floating], scale: float) -> None:
    logits = (scale * np.random.default_rng(seed).standard_normal((3, 4, 9))).astype(dtype)
    ours = log_probabilities(logits)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, log_softmax(logits, axis=-1))


def test_vectors_are_pooled_over_tokens_that_count() -> None:
    hidden = np.arange(12, dtype=np.float64).reshape(2, 3, 2)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(pooled(hidden, mask), [[1, 2], [6, 7]])
    np.testing.assert_allclose(pooled(hidden), hidden.mean(1))
    np.testing.assert_allclose(pooled(hidden, mask[:1]), hidden.mean(1))
    np.testing.assert_array_equal(pooled(hidden[0]), hidden[0])


def test_cosines_are_products_of_unit_vectors() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 5, 7))
    np.testing.assert_allclose(cosines(a, b), (unit(a) * unit(b)).sum(-1))
    assert not unit(np.zeros(3)).any() and cosines(np.zeros(3), np.ones(3)) == 0
