"""Codes: a matrix in a few bits a number, with scales, rounded so that what it does to data changes least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lowrank.core.linalg.eigen import Matrix, eigh_descending, inverse_factor
from lowrank.core.truncation.factors import Factors

F = TypeVar("F", np.float32, np.float64)
DAMPING = 0.01
"""What is added to the inputs' moment, as a share of its mean: directions without data are rounded to the nearest."""
SHRINKS = np.linspace(0.7, 1.0, 13)
"""Shares of a block's largest number that four bits may span: clipping it can make all others finer."""
FLOOR = 1e-6
"""Singular values below this share of the largest are not made even, which would blow them up."""
RIDGE = 1e-4
"""The ridge of a refit toward the factor as it was, as a share of the mean moment."""
LARGEST = 64
"""The largest code of eight bits. Processors with AVX2 and without VNNI add two products with inputs of up to 255 in 16
bits: of larger codes the sum would not fit, and a model that is right on one machine would be wrong on another."""
LEVELS = {8: (-LARGEST, LARGEST), 4: (-8, 7), 3: (-7, 7), 2: (-3, 3)}
"""The smallest and the largest code, by bits. Those of three and two bits are odd numbers: with so few of them a zero
that has no twin would cost more than it is worth."""
STEPS = (-8, 7)
"""The smallest and the largest step; products with codes are codes of eight bits."""
SPANS = (1.0, 0.85, 0.7, 0.6, 0.5)
"""Shares of a row's largest number that three or two bits may span: what is best for them clips much of it."""
PANEL = 64
"""Columns after which what rounding did to them is made up for in all later ones at once."""


@dataclass(frozen=True, eq=False)
class Codes:
    """`W[i, j] = scale[i, j // block] codes[i, j]`: symmetric, so zero stays zero, but for odd codes.

    With steps there is one scale a row, and `W[i, j] = scale[i] steps[i, j // block] codes[i, j]`: scales of blocks in
    four bits each, whose products with codes are whole numbers of eight.

    Example:
        >>> coded = quantize(np.array([[1.0, -2.0, 0.5]]), bits=8)
        >>> coded.codes.tolist()
        [[32, -64, 16]]
    """

    codes: NDArray[np.int8]
    """rows x cols."""
    scale: NDArray[np.float32]
    """rows x blocks, or rows x 1 with steps."""
    bits: int
    block: int
    """Numbers of a row that share a scale, or a step."""
    steps: NDArray[np.int8] | None = None
    """rows x blocks, -8 to 7."""

    def matrix(self) -> Matrix:
        """The numbers that the codes stand for, in float64."""
        return self.codes * _each(self.scale, self.steps, self.block, self.codes.shape[1])


def unit_of_each(weight: Matrix, bits: int, block: int | None, stepped: bool) -> Matrix:
    """What one more in the code of each number of a matrix would add to it; see `quantize`.

    Returns:
        rows x cols, zero where all numbers of a block would be zero.
    """
    width = block or weight.shape[1]
    scale, steps = _stepped(weight, bits, width) if stepped else (_scales(weight, bits, width), None)
    return _each(scale, steps, width, weight.shape[1])


def nearest(values: NDArray[F], bits: int) -> NDArray[F]:
    """The codes that are nearest to values.

    Example:
        >>> nearest(np.array([-9.0, 0.3, 2.2]), 4).tolist(), nearest(np.array([-9.0, 0.3, 2.2]), 2).tolist()
        ([-8.0, 0.0, 2.0], [-3.0, 1.0, 3.0])
    """
    low, high = LEVELS[bits]
    if bits > 3:
        return np.clip(np.rint(values), low, high)
    whole = np.floor(values / 2)
    whole *= 2
    whole += 1
    return np.clip(whole, low, high, out=whole)


def _each(scale: NDArray[np.float32], steps: NDArray[np.int8] | None, block: int, cols: int) -> Matrix:
    """The scale of every number."""
    blocks = scale.astype(np.float64) if steps is None else scale.astype(np.float64) * steps
    return np.repeat(blocks, block, axis=1)[:, :cols]


def quantize(
    weight: Matrix, *, bits: int, block: int | None = None, stepped: bool = False, moment: Matrix | None = None
) -> Codes:
    """Round a matrix to `bits` a number, a scale for each row or for each `block` of numbers in it.

    With the inputs' moment each column's rounding error is made up for in the columns that are still to be rounded, as
    far as the inputs are correlated: the solution, column by column, of `min E|Wx - W_q x|^2` (GPTQ, ICLR 2023,
    algorithm 1). Without it each number is rounded to the nearest.

    Args:
        weight: rows x cols, finite.
        bits: 8 or 4; with steps 4, 3 or 2.
        block: numbers of a row that share a scale; None for all of them.
        stepped: with scales of blocks that are four bits themselves.
        moment: `E[x x']` of the inputs, cols x cols.

    Returns:
        The codes, within `LEVELS`.
    """
    rows, cols = weight.shape
    width = block or cols
    scale, steps = _stepped(weight, bits, width) if stepped else (_scales(weight, bits, width), None)
    each = _each(scale, steps, width, cols)
    safe = np.where(each == 0, 1.0, each)
    if moment is None:
        return Codes(nearest(weight / safe, bits).astype(np.int8), scale, bits, width, steps)
    spread = _spread(moment)
    left, codes = weight.copy(), np.zeros((rows, cols), np.int8)
    for start in range(0, cols, PANEL):
        stop = min(start + PANEL, cols)
        missed = np.zeros((rows, stop - start))
        for j in range(start, stop):
            codes[:, j] = nearest(left[:, j] / safe[:, j], bits)
            missed[:, j - start] = (left[:, j] - codes[:, j] * each[:, j]) / spread[j, j]
            left[:, j + 1 : stop] -= missed[:, j - start, None] * spread[j, j + 1 : stop]
        left[:, stop:] -= missed @ spread[start:stop, stop:]
    return Codes(codes, scale, bits, width, steps)


def _spread(moment: Matrix) -> Matrix:
    """Row j says how column j's error is made up for in the later ones."""
    size = len(moment)
    mean = float(np.trace(moment)) / size
    return inverse_factor(moment / mean + DAMPING * np.eye(size)) if mean > 0 else np.eye(size)


def _scales(weight: Matrix, bits: int, block: int) -> NDArray[np.float32]:
    """One scale for each row and block: for 8 bits the finest that clips nothing, for 4 the one that loses least."""
    parts = in_blocks(weight, block, bits)
    if bits == 8:
        return (np.abs(parts).max(-1) / LARGEST).astype(np.float32)
    # The code -8 has no positive twin: the largest number takes it, whatever its sign.
    largest = np.take_along_axis(parts, np.abs(parts).argmax(-1)[..., None], -1)[..., 0]
    best, least = (largest / -8).astype(np.float32), np.full(largest.shape, np.inf)
    for share in SHRINKS:
        for side in (-8, 7):
            scale = (largest * share / side).astype(np.float32).astype(np.float64)
            lost = _lost(parts, scale, bits)
            better = lost < least
            best[better], least[better] = scale[better], lost[better]
    return best


def _stepped(weight: Matrix, bits: int, block: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """A scale for each row, with which the largest step can hold the largest number, or what is worth holding of it;
    for each block the step that loses least."""
    parts = in_blocks(weight, block, bits)
    most = -STEPS[0] * -LEVELS[bits][0]
    whole = (np.abs(parts).max((1, 2)) / most).astype(np.float32)
    # In units of the scale, whatever the size of the numbers; which step is best does not hang on their last digits.
    units = (parts / np.where(whole == 0, 1.0, whole.astype(np.float64))[:, None, None]).astype(np.float32)
    if bits > 3:
        return whole[:, None], _steps(units, 1.0, bits)[0]
    spans, steps, least = np.ones_like(whole), np.zeros(parts.shape[:2], np.int8), np.full(len(parts), np.inf)
    for span in SPANS:
        found, lost = _steps(units, span, bits)
        better = lost.sum(1) < least
        spans[better], steps[better], least[better] = span, found[better], lost.sum(1)[better]
    return (whole * spans)[:, None], steps


def _steps(parts: NDArray[np.float32], scale: float, bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The step of each block that loses least, where one of a step is so much, and what that loses."""
    steps, least = np.zeros(parts.shape[:2], np.int8), np.square(parts).sum(-1)
    # Odd codes are the same with the other sign.
    for step in range(STEPS[0], STEPS[1] + 1 if bits > 3 else 0):
        lost = _lost(parts, np.array(scale * step, np.float32), bits)
        better = lost < least
        steps[better], least[better] = step, lost[better]
    return steps, least


def in_blocks(weight: Matrix, block: int, bits: int) -> NDArray[np.float64]:
    """A matrix as rows x blocks x block numbers; each row is filled up with zeros, or, as odd codes have none, with its
    last number."""
    rows, cols = weight.shape
    filled = np.pad(weight, ((0, 0), (0, -cols % block)), mode="constant" if bits > 3 else "edge")
    return np.asarray(filled.reshape(rows, -1, block), np.float64)


def _lost(parts: NDArray[Any], scale: NDArray[Any], bits: int) -> NDArray[Any]:
    """What rounding blocks with these scales loses of each."""
    safe = np.where(scale == 0, np.ones_like(scale), scale)[..., None]
    missed = nearest(parts / safe, bits)
    missed *= scale[..., None]
    missed -= parts
    return np.einsum("...i,...i", missed, missed)


def even_latents(factors: Factors, moment: Matrix | None, seed: int = 0) -> Factors:
    """The same product, in coordinates in which all channels between the factors have one size.

    The product is split evenly, `(U S^(1/2) Q) (Q' S^(1/2) V')`, where `U S V'` is its singular value decomposition in
    the metric of the inputs and `Q` a random rotation: no latent channel, and no number of either factor, then stands
    out and takes the range of a scale for itself (research: rotations before quantising, QuaRot, NeurIPS 2024).

    Args:
        factors: rows x rank and rank x cols.
        moment: `E[x x']` of the inputs; None takes inputs that are all alike.
        seed: of the rotation.
    """
    left, right = np.asarray(factors.left, np.float64), np.asarray(factors.right, np.float64)
    inner = right @ right.T if moment is None else right @ moment @ right.T
    values, vectors = eigh_descending(inner)
    # Directions without energy get the size of the smallest that has some.
    roots = np.sqrt(np.maximum(values, FLOOR * values[0] if values[0] > 0 else 1.0))
    whole = left @ (vectors * roots)
    squares, turn = eigh_descending(whole.T @ whole)
    # Fourth roots of squares: half of each singular value goes to either side.
    sizes = np.maximum(squares, FLOOR**2 * squares[0] if squares[0] > 0 else 1.0) ** 0.25
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(sizes), len(sizes))))
    write = whole @ (turn / sizes) @ rotation
    read = (rotation.T * sizes) @ (turn.T @ ((vectors / roots).T @ right))
    return Factors(write, read)


def refitted_left(factors: Factors, right: Matrix, moment: Matrix | None) -> Matrix:
    """The left factor that makes up for a right one that was rounded: `min_A E|L R x - A R_q x|^2`, with some ridge.

    Args:
        factors: `L` and `R` before rounding.
        right: `R_q`.
        moment: `E[x x']` of the inputs; None takes inputs that are all alike.

    Returns:
        rows x rank.
    """
    weighted = right if moment is None else right @ moment
    square = weighted @ right.T
    if not np.trace(square) > 0:
        # The channels between the factors are always zero.
        return np.asarray(factors.left, np.float64)
    ridge = RIDGE * float(np.trace(square)) / len(square) * np.eye(len(square))
    left, before = np.asarray(factors.left, np.float64), np.asarray(factors.right, np.float64)
    wanted = left @ (before @ weighted.T) + left @ ridge
    return np.asarray(np.linalg.solve((square + ridge).T, wanted.T).T, np.float64)
