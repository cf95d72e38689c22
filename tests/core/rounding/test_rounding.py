"""Laws of formats and of budgets of bytes: what a matrix takes, what rounding is predicted to lose, never too large."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import decaying, gram_of, inputs
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.analysis import Analysis, Folds, WeightAnalysis
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan, stored_weights
from lowrank.core.rounding.cost import SAMPLE
from lowrank.core.rounding.formats import FORMATS, Stored, even_error, stored_as
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.structures import structure_named
from lowrank.core.truncation.directions import directions
from lowrank.core.weight import Layer, Weight
from lowrank.core.weight_analysis import analyze_weight
from lowrank.edge.packing import pack
from lowrank.errors import InfeasibleBudget, PlanMismatch

SIZES = st.integers(1, 40)
SHAPES = [(48, 48), (96, 48), (48, 96), (64, 64)]


def record(rows: int, cols: int, seed: int, kind: Any = "linear") -> tuple[WeightAnalysis, np.ndarray, np.ndarray]:
    """With the matrix and the moment of its inputs."""
    matrix = decaying(rows, cols, seed, power=0.5 + 0.2 * seed)
    weight = Weight(f"layers.{seed}.w.weight", rows, cols, "float32", "projection", (Layer(f"layers.{seed}.w", kind),))
    x = inputs(np.random.default_rng(seed), 400, cols, 30.0)
    folds = Folds(gram_of(matrix, x[:300]), gram_of(matrix, x[300:]))
    return analyze_weight(weight, matrix, folds), matrix, x.T @ x / len(x)


def an_analysis() -> Analysis:
    return Analysis(tuple(record(*shape, i)[0] for i, shape in enumerate(SHAPES)), fingerprint="a")


@given(
    rows=SIZES, cols=SIZES, seed=st.integers(0, 99), zeros=st.booleans(), name=st.sampled_from(["int4", "int3", "int2"])
)
def test_steps_and_codes_are_whole_numbers_of_few_bits(rows: int, cols: int, seed: int, zeros: bool, name: str) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, cols))
    weight[0] *= 0.0 if zeros else 1e-6
    coded = FORMATS[name].codes(weight)
    assert coded.steps is not None and coded.steps.shape == (rows, -(-cols // 16))
    spread = np.repeat(coded.steps, 16, 1)[:, :cols]
    whole = coded.codes * spread.astype(int)
    # What the runtime multiplies: it must not run over where two products share sixteen bits.
    assert np.abs(whole).max() <= 64
    assert np.allclose(coded.matrix(), whole * coded.scale.astype(np.float64))
    assert not coded.matrix()[weight == 0].any()
    low, high = FORMATS[name].levels
    assert low <= coded.codes.min() and coded.codes.max() <= high and (name == "int4" or (coded.codes % 2).all())
    packed = pack(coded)
    assert sum(each.nbytes for each in packed.values()) + coded.scale.nbytes == FORMATS[name].nbytes(rows, cols)


@given(rows=SIZES, cols=SIZES)
def test_four_bits_are_packed_two_in_a_byte(rows: int, cols: int) -> None:
    coded = FORMATS["int4"].codes(np.random.default_rng(0).standard_normal((rows, cols)))
    assert coded.steps is not None
    packed = pack(coded)["int4"]
    nibbles = np.concatenate([packed & 15, packed >> 4], 1).astype(int) - 8
    assert np.array_equal(nibbles[:, :cols], coded.codes)
    assert np.array_equal(nibbles[:, cols : cols + coded.steps.shape[1]], coded.steps)


@given(rows=SIZES, cols=SIZES, name=st.sampled_from(["int8", "nbits4"]))
def test_bytes_are_those_of_codes_and_scales(rows: int, cols: int, name: str) -> None:
    coded = FORMATS[name].codes(np.random.default_rng(0).standard_normal((rows, cols)))
    width = -(-cols // coded.block) * coded.block if name == "nbits4" else cols
    assert FORMATS[name].nbytes(rows, cols) == rows * width * coded.bits // 8 + coded.scale.nbytes


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_blocks_of_zeros_do_not_spoil_the_others(name: str) -> None:
    rng = np.random.default_rng(0)
    weight, mixing = 0.05 * rng.standard_normal((64, 128)), rng.standard_normal((128, 128))
    weight[:, 32:64] = 0
    moment = mixing @ np.diag(0.95 ** np.arange(128)) @ mixing.T

    def lost(moments: np.ndarray | None) -> float:
        change = weight - FORMATS[name].codes(weight, moments).matrix()
        return float(np.vdot(change @ moment, change))

    assert lost(moment) < lost(None)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("size", [2.0**90, 2.0**-90])
def test_codes_do_not_hang_on_the_size_of_the_numbers(name: str, size: float) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 48))
    assert np.array_equal(FORMATS[name].codes(size * weight).codes, FORMATS[name].codes(weight).codes)


def test_steps_lose_less_than_scales_in_fewer_bytes() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 384))
    lost = {name: float(np.square(weight - FORMATS[name].codes(weight).matrix()).sum()) for name in FORMATS}
    assert lost["int8"] < lost["int4"] < lost["nbits4"] < lost["int3"] < lost["int2"] < 0.11 * np.square(weight).sum()
    assert 3.5 < lost["int3"] / lost["int4"] < 4.5 and 14 < lost["int2"] / lost["int4"] < 18
    assert FORMATS["int4"].nbytes(64, 384) < 0.9 * FORMATS["nbits4"].nbytes(64, 384)


@pytest.mark.parametrize("name", ["int8", "int4", "int3", "int2"])
def test_the_predicted_error_is_that_of_rounding(name: str) -> None:
    known, matrix, moment = record(SAMPLE, 48, 1)
    change = matrix - FORMATS[name].codes(matrix, moment).matrix()
    found = np.vdot(change @ moment, change) / np.vdot(matrix @ moment, matrix)
    assert known.rounding[name] == pytest.approx(float(found), rel=0.3)
    # A part of the rows says it, too.
    larger = record(8 * SAMPLE, 48, 1)[0]
    assert larger.rounding[name] == pytest.approx(known.rounding[name], rel=0.3)
    assert even_error("int8") < 1e-3 < even_error("int4") < 1e-2


def test_convolutions_and_stacks_are_not_rounded() -> None:
    assert record(24, 24, 0, "conv")[0].rounding == {}
    assert set(record(24, 24, 0, "lookup")[0].rounding) == {"int8", "int4", "int3", "int2"}


@given(limit=st.integers(4000, 90000), overhead=st.integers(0, 3000))
def test_never_over_the_size(limit: int, overhead: int) -> None:
    analysis = an_analysis()
    try:
        plan = Knapsack(overhead=overhead).select(analysis, Budget.size(limit))
    except InfeasibleBudget as error:
        assert "give --size" in str(error)
        return
    nbytes = overhead
    for option in plan.options:
        weights = [analysis[name].weight for name in analysis.groups[option.group].weights]
        nbytes += int(np.ceil(structure_named(option.structure).file_bytes(option.curve, weights)[0]))
    assert plan.reached == nbytes <= limit and plan.meets_budget
    again = Plan.from_json(plan.to_json(), analysis, plan.budget)
    assert again.options == plan.options and again.meets_budget


def test_more_bytes_lose_less_until_nothing_is_lost() -> None:
    analysis, before = an_analysis(), np.inf
    for limit in (12000, 16000, 24000, 48000, 120000):
        plan = Knapsack().select(analysis, Budget.size(limit))
        lost = sum(option.error for option in plan.options)
        assert lost <= before
        before = lost
    assert before == 0 and all(o.structure == "dense" and o.dtype == "float32" for o in plan.options)


def test_an_edited_type_is_checked() -> None:
    analysis = an_analysis()
    plan = Knapsack().select(analysis, Budget.size(16000))
    content = plan.to_json()
    content["groups"][0] |= {"structure": "residual", "rank": 8, "dtype": "int4"}
    edited = Plan.from_json(content, analysis, None)
    name = analysis.singles[0].name
    assert stored_weights(edited, analysis)[name] == Stored("int4", 8)
    assert 0 < edited.options[0].error < analysis[name].rounding["int4"] + 1e-3
    content["groups"][0]["dtype"] = "int1"
    with pytest.raises(PlanMismatch, match="cannot be stored in 'int1'"):
        Plan.from_json(content, analysis, None)
    odd = replace(analysis, weights=(replace(analysis.weights[0], rounding={}), *analysis.weights[1:]))
    content["groups"][0] |= {"structure": "dense", "dtype": "int4"}
    with pytest.raises(PlanMismatch, match="no form in int4"):
        Plan.from_json(content, odd, None)


def test_factors_are_stored_as_their_weight() -> None:
    known = {"a.weight": Stored("int4"), "a.b.weight": Stored("float16")}
    assert stored_as("a.left.weight", known).dtype == "int4"
    assert stored_as("a.b.right.weight", known).dtype == "float16"
    assert stored_as("ab.weight", known).dtype == "int8"


def test_a_residual_takes_the_largest_out() -> None:
    """What the structure's error promises: what is left to be rounded is smaller, so its steps are, too."""
    matrix = decaying(96, 96, 0, power=1.0)
    left = matrix - directions(matrix).truncate(matrix, 16).product()
    lost = [float(np.square(m - FORMATS["int4"].codes(m).matrix()).sum()) for m in (matrix, left)]
    tail = np.square(left).sum() / np.square(matrix).sum()
    assert lost[1] / lost[0] == pytest.approx(tail, rel=0.25)
