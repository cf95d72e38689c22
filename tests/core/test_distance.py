"""The measures of how far outputs are from each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from lowrank.core.distance import OutputKind, Reference, cosines, log_probabilities, pooled, unit

KINDS: list[OutputKind] = ["logits", "embedding", "values"]
RELATIVE: list[OutputKind] = ["embedding", "values"]


def outputs(seed: int, shape: tuple[int, ...] = (3, 5)) -> list[np.ndarray]:
    """Two batches; of their samples each has a pattern of its own."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((samples, *shape)) for samples in (2, 3)]


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
    y = outputs(0)
    assert Reference(y, "logits").loss([part + 7.0 for part in y]) == pytest.approx(0, abs=1e-12)
    assert Reference(y, "embedding").loss([part * 7.0 for part in y]) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 1000), st.floats(0.1, 100), st.floats(-1e3, 1e3))
def test_a_constant_part_of_values_is_no_merit(seed: int, scale: float, offset: float) -> None:
    """A map that is nearly the same for every input is not near to it because of that."""
    rng = np.random.default_rng(seed)
    dense, noise = outputs(seed), [rng.standard_normal((len(y), *y.shape[1:])) for y in outputs(seed)]
    other = [y + 0.1 * n for y, n in zip(dense, noise, strict=True)]
    constant = offset * rng.standard_normal((3, 5))
    before = Reference(dense, "values").loss(other)
    moved = Reference([scale * y + constant for y in dense], "values").loss([scale * y + constant for y in other])
    assert moved == pytest.approx(before, rel=1e-4)


@given(st.integers(0, 1000), st.sampled_from([(5,), (3, 5), (2, 3, 4)]))
def test_the_mean_explains_nothing(seed: int, shape: tuple[int, ...]) -> None:
    dense = outputs(seed, shape)
    mean = np.concatenate(dense).mean(0)
    loss = Reference(dense, "values").loss([np.broadcast_to(mean, y.shape) for y in dense])
    assert loss == pytest.approx(1)
    rng = np.random.default_rng(seed)
    several = [rng.standard_normal((2, length, 4)) + np.array([0, 5, -3, 100]) for length in (3, 7)]
    channels = np.concatenate([y.reshape(-1, 4) for y in several]).mean(0)
    assert Reference(several, "values").loss([np.broadcast_to(channels, y.shape) for y in several]) == pytest.approx(1)
    # Of unit vectors, too: the mean has another length than they, so it is not one of them.
    vectors = outputs(seed, (6,))
    center = np.concatenate([unit(y) for y in vectors]).mean(0)
    reference = Reference(vectors, "embedding")
    assert reference.spread == pytest.approx(1 - float(center @ center))


@given(st.integers(0, 1000), st.floats(0.01, 3))
def test_the_loss_of_embeddings_is_their_unexplained_variance(seed: int, apart: float) -> None:
    rng = np.random.default_rng(seed)
    dense = [rng.standard_normal((4, 6)) + 1, rng.standard_normal((3, 6)) + 1]
    other = [y + apart * rng.standard_normal(y.shape) for y in dense]
    as_values = Reference([unit(y) for y in dense], "values").loss([unit(y) for y in other])
    assert Reference(dense, "embedding").loss(other) == pytest.approx(as_values)
    mean = float(np.mean(cosines(np.concatenate(dense), np.concatenate(other))))
    expected = 2 * (1 - mean) / Reference(dense, "embedding").spread
    assert Reference(dense, "embedding").loss(other) == pytest.approx(expected)


@given(st.integers(0, 1000), st.sampled_from(KINDS))
def test_positions_that_do_not_count_do_not_matter(seed: int, kind: OutputKind) -> None:
    rng = np.random.default_rng(seed)
    dense, other = outputs(seed), outputs(seed + 1)
    counted = [rng.random(y.shape[:2]) < 0.5 for y in dense]
    for mask in counted:
        mask[:, 0] = True
    reference = Reference(dense, kind, counted)
    loss = reference.loss(other)
    spoiled = [np.where(mask[..., None], y, 1e6) for y, mask in zip(other, counted, strict=True)]
    assert reference.loss(spoiled) == pytest.approx(loss)
    broken = [np.where(mask[..., None], y, np.nan) for y, mask in zip(dense, counted, strict=True)]
    assert Reference(broken, kind, counted).loss(other) == pytest.approx(loss)
    one = [np.array([[0, 1, 0]] * len(y)) for y in dense]
    alone = Reference([y[:, 1] for y in dense], kind).loss([y[:, 1] for y in other])
    assert Reference(dense, kind, one).loss(other) == pytest.approx(alone)
    # Of another shape than the output's positions it says nothing of them.
    odd = [np.zeros((len(y), 9)) for y in dense]
    assert Reference(dense, kind, odd).loss(other) == Reference(dense, kind).loss(other)


def test_divergence_is_that_of_the_distributions() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    divergence = Reference([np.log(p)[None]], "logits").loss([np.log(q)[None]])
    assert divergence == pytest.approx(float((p * np.log(p / q)).sum()))


def test_a_class_that_has_no_probability_adds_nothing() -> None:
    dense, other = np.array([[0.0, 1.0, -np.inf]]), np.array([[0.0, 1.0, -np.inf]])
    assert Reference([dense], "logits").loss([other]) == 0
    other[0, 2] = 0.0
    alone = np.log1p(1 / (1 + np.e))
    assert Reference([dense], "logits").loss([other]) == pytest.approx(alone)
    # What the dense model gives and the other one never does is infinitely far; a row without any class says nothing.
    assert Reference([other], "logits").loss([dense]) == np.inf
    assert Reference([np.full((1, 3), -np.inf)], "logits").count == 0


def test_classes_of_maps_are_their_second_axis_and_a_single_class_is_a_value() -> None:
    dense, other = np.random.default_rng(0).standard_normal((2, 3, 5, 4, 4))
    flat = [np.moveaxis(y, 1, -1).reshape(-1, 5) for y in (dense, other)]
    assert Reference([dense], "logits").loss([other]) == Reference([flat[0]], "logits").loss([flat[1]])
    assert Reference([dense[:, :1]], "logits").kind == "values"
    assert Reference([dense[..., :1]], "logits").kind == "logits"
    scores = np.random.default_rng(1).standard_normal((2, 6, 1))
    assert Reference([scores[0]], "logits").kind == "values"
    assert Reference([scores[0]], "logits").loss([scores[1]]) == Reference([scores[0]], "values").loss([scores[1]]) > 0


@pytest.mark.parametrize("kind", RELATIVE)
def test_what_never_varies_is_compared_as_it_is(kind: OutputKind) -> None:
    dense = [np.ones((4, 3))]
    assert Reference(dense, kind).loss(dense) == 0
    assert Reference(dense, kind).loss([-dense[0]]) > 1


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_one_sample_is_compared_by_its_norm_in_any_unit(seed: int, unit_: float) -> None:
    rng = np.random.default_rng(seed)
    dense, other = rng.standard_normal((2, 1, 5))
    expected = float(np.square(other - dense).sum() / np.square(dense).sum())
    assert Reference([unit_ * dense], "values").loss([unit_ * other]) == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_the_dense_model_gives_as_nan_are_compared_with_nothing(kind: OutputKind) -> None:
    rng = np.random.default_rng(0)
    dense, other = rng.standard_normal((2, 8, 5))
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


@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_choices_lose_the_share_that_differ(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    dense = [rng.integers(0, 9, (3, 5)), rng.integers(0, 9, (2, 5))]
    wrong = [rng.random(y.shape) < share for y in dense]
    other = [np.where(w, y + 1, y) for y, w in zip(dense, wrong, strict=True)]
    assert Reference(dense, "choices").loss(other) == pytest.approx(np.concatenate(wrong).mean())
    # How far off a whole number is does not matter.
    far = [np.where(w, y + 100, y) for y, w in zip(dense, wrong, strict=True)]
    assert Reference(dense, "choices").loss(far) == Reference(dense, "choices").loss(other)


@given(seed=st.integers(0, 1000))
def test_numbers_of_positions_are_those_that_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense, other = rng.standard_normal((2, 4, 6))
    counted = np.ones((4, 6), np.int64)
    counted[1:, 3:] = 0
    # As if each position were a sample of one number.
    alone = Reference([dense[counted == 1][:, None]], "values").loss([other[counted == 1][:, None]])
    reference = Reference([dense], "values", [counted], over_positions=True)
    assert reference.loss([other]) == pytest.approx(alone)
    assert reference.loss([np.where(counted == 1, other, np.nan)]) == pytest.approx(alone)
    assert list(reference.owners(0, dense)) == [0] * 6 + [1] * 3 + [2] * 3 + [3] * 3
