"""Laws of rounding: bounds of errors, what data and evenness gain, and functions that stay what they were."""

from __future__ import annotations

import numpy as np
import pytest
from builders import decaying, inputs
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.rounding.codes import even_latents, quantize, refitted_left
from lowrank.core.truncation.factors import Factors

SIZES = st.integers(1, 40)


def loss(weight: np.ndarray, other: np.ndarray, moment: np.ndarray) -> float:
    """`E|Wx - Vx|^2 / E|Wx|^2`."""
    change = weight - other
    total = float(np.vdot(weight @ moment, weight))
    return float(np.vdot(change @ moment, change)) / total if total > 0 else 0.0


@given(rows=SIZES, cols=SIZES, seed=st.integers(0, 99), zeros=st.booleans())
def test_eight_bits_are_within_half_a_step(rows: int, cols: int, seed: int, zeros: bool) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, cols))
    weight[0] *= 0.0 if zeros else 1e-6
    coded = quantize(weight, bits=8)
    assert np.abs(coded.matrix() - weight).max() <= 0.5001 * coded.scale.max(initial=0.0) + 1e-12
    assert np.abs(coded.codes).max() <= 64 and not coded.codes[weight == 0].any()


@given(rows=SIZES, cols=SIZES, seed=st.integers(0, 99), block=st.sampled_from([16, 32]))
def test_four_bits_have_a_scale_a_block(rows: int, cols: int, seed: int, block: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, cols))
    coded = quantize(weight, bits=4, block=block)
    assert coded.scale.shape == (rows, -(-cols // block)) and coded.codes.min() >= -8 and coded.codes.max() <= 7
    plain = np.abs(np.pad(weight, [(0, 0), (0, -cols % block)]).reshape(rows, -1, block)).max(-1) / 7
    step = np.repeat(plain, block, 1)[:, :cols]
    nearest = np.rint(weight / step) * step
    ours, theirs = (float(np.square(found - weight).sum()) for found in (coded.matrix(), nearest))
    assert ours <= theirs * (1 + 1e-6) + 1e-12


def test_what_is_a_code_already_stays() -> None:
    codes = np.random.default_rng(0).integers(-64, 65, (8, 20))
    codes[:, 0] = 64
    coded = quantize(codes * 0.25, bits=8)
    assert np.array_equal(coded.codes, codes) and np.allclose(coded.matrix(), codes * 0.25)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_for_data_loses_less_on_it(bits: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((48, 64))
    x = inputs(rng, 2000, 64, condition=1e3)
    moment = x.T @ x / len(x)
    block = 32 if bits == 4 else None
    plain, ours = (quantize(weight, bits=bits, block=block, moment=m).matrix() for m in (None, moment))
    assert loss(weight, ours, moment) < 0.7 * loss(weight, plain, moment)
    # The loss is that on the data themselves.
    change = x @ (weight - ours).T
    assert loss(weight, ours, moment) == pytest.approx(np.square(change).sum() / np.square(x @ weight.T).sum())


def test_inputs_without_a_moment_are_rounded_to_the_nearest() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 10))
    nothing = quantize(weight, bits=8, moment=np.zeros((10, 10)))
    assert np.array_equal(nothing.codes, quantize(weight, bits=8).codes)


@given(rank=st.integers(1, 12), seed=st.integers(0, 50), condition=st.sampled_from([None, 1.0, 1e8, np.inf]))
def test_even_latents_are_the_same_function(rank: int, seed: int, condition: float | None) -> None:
    rng = np.random.default_rng(seed)
    pair = Factors(rng.standard_normal((20, rank)) * np.logspace(0, -4, rank), rng.standard_normal((rank, 16)))
    x = inputs(rng, 300, 16, condition or 1.0)
    even = even_latents(pair, None if condition is None else x.T @ x / len(x))
    assert even.left.shape == (20, rank) and even.right.shape == (rank, 16)
    np.testing.assert_allclose(
        x @ even.product().T, x @ pair.product().T, atol=1e-6 * np.abs(x @ pair.product().T).max()
    )


def test_even_latents_are_even() -> None:
    rng = np.random.default_rng(0)
    x = inputs(rng, 3000, 64, condition=1e4)
    moment = x.T @ x / len(x)
    left, right = decaying(96, 32, power=1.5), decaying(32, 64, 1, power=1.5)

    def spread(pair: Factors) -> float:
        sizes = np.sqrt(np.diag(pair.right @ moment @ pair.right.T))
        return float(sizes.max() / np.median(sizes))

    uneven = Factors(left / np.logspace(0, 2, 32), right * np.logspace(0, 2, 32)[:, None])
    even = even_latents(uneven, moment)
    assert spread(even) < 3 < 6 < spread(uneven)
    coded = [quantize(np.asarray(pair.left), bits=4, block=32) for pair in (uneven, even)]
    lost = [loss(left @ right, c.matrix() @ p.right, moment) for p, c in zip((uneven, even), coded, strict=True)]
    assert lost[1] < lost[0]


@pytest.mark.parametrize("known", [True, False])
def test_the_second_factor_makes_up_for_the_first(known: bool) -> None:
    rng = np.random.default_rng(0)
    x = inputs(rng, 3000, 40, condition=100.0)
    moment = x.T @ x / len(x) if known else None
    metric = np.eye(40) if moment is None else moment
    pair = even_latents(Factors(rng.standard_normal((30, 12)), rng.standard_normal((12, 40))), moment)
    right = quantize(np.asarray(pair.right), bits=4, block=16).matrix()
    left = refitted_left(pair, right, moment)
    before, after = (loss(pair.product(), a @ right, metric) for a in (pair.left, left))
    assert after < before
    # No other left factor is better, but for the ridge.
    wiggle = 1e-3 * rng.standard_normal(left.shape)
    assert loss(pair.product(), (left + wiggle) @ right, metric) > after * (1 - 1e-3)
    np.testing.assert_allclose(refitted_left(pair, np.asarray(pair.right), moment), pair.left, rtol=1e-6, atol=1e-8)
