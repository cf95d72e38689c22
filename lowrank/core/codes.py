"""Codes: a matrix in a few bits a number, with scales, rounded so that what it does to data changes least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank.core.factors import Factors
from lowrank.core.linalg import Matrix, eigh_descending, inverse_factor

DAMPING = 0.01
"""Of the inputs' moment, as a share of its mean: directions without data are rounded to the nearest."""
SHRINKS = np.linspace(0.7, 1.0, 13)
"""Shares of a block's largest number that four bits may span: clipping it can make all others finer."""
FLOOR = 1e-6
"""Of the largest singular value: what is smaller is not made even, as that would blow it up."""
RIDGE = 1e-4
"""Of a refit toward the factor as it was, as a share of the mean moment."""
PANEL = 64
"""Columns after which what rounding did to them is made up for in all later ones at once."""


@dataclass(frozen=True, eq=False)
class Codes:
    """`W[i, j] = scale[i, j // block] codes[i, j]`: symmetric, so zero stays zero.

    Example:
        >>> coded = quantize(np.array([[1.0, -2.0, 0.5]]), bits=8)
        >>> coded.codes.tolist()
        [[64, -127, 32]]
    """

    codes: NDArray[np.int8]
    """rows x cols."""
    scale: NDArray[np.float32]
    """rows x blocks."""
    bits: int
    block: int
    """Numbers of a row that share a scale."""

    def matrix(self) -> Matrix:
        """The numbers that the codes stand for, in float64."""
        spread = np.repeat(self.scale.astype(np.float64), self.block, axis=1)[:, : self.codes.shape[1]]
        return self.codes * spread


def quantize(weight: Matrix, *, bits: int, block: int | None = None, moment: Matrix | None = None) -> Codes:
    """Round a matrix to `bits` a number, a scale for each row or for each `block` of numbers in it.

    With the inputs' moment each column's rounding error is made up for in the columns that are still to be rounded, as
    far as the inputs are correlated: the solution, column by column, of `min E|Wx - W_q x|^2` (GPTQ, ICLR 2023,
    algorithm 1). Without it each number is rounded to the nearest.

    Args:
        weight: rows x cols, finite.
        bits: 4 or 8.
        block: numbers of a row that share a scale; None for all of them.
        moment: `E[x x']` of the inputs, cols x cols.

    Returns:
        The codes; for 8 bits between -127 and 127, for 4 between -8 and 7.
    """
    rows, cols = weight.shape
    width = block or cols
    scale = _scales(weight, bits, width)
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    each: Matrix = np.repeat(scale.astype(np.float64), width, axis=1)[:, :cols]
    safe = np.where(each == 0, 1.0, each)
    if moment is None:
        return Codes(np.clip(np.rint(weight / safe), low, high).astype(np.int8), scale, bits, width)
    spread = _spread(moment)
    left, codes = weight.copy(), np.zeros((rows, cols), np.int8)
    for start in range(0, cols, PANEL):
        stop = min(start + PANEL, cols)
        missed = np.zeros((rows, stop - start))
        for j in range(start, stop):
            codes[:, j] = np.clip(np.rint(left[:, j] / safe[:, j]), low, high)
            missed[:, j - start] = (left[:, j] - codes[:, j] * safe[:, j]) / spread[j, j]
            left[:, j + 1 : stop] -= missed[:, j - start, None] * spread[j, j + 1 : stop]
        left[:, stop:] -= missed @ spread[start:stop, stop:]
    return Codes(codes, scale, bits, width)


def _spread(moment: Matrix) -> Matrix:
    """Row j says how column j's error is made up for in the later ones."""
    size = len(moment)
    mean = float(np.trace(moment)) / size
    return inverse_factor(moment / mean + DAMPING * np.eye(size)) if mean > 0 else np.eye(size)


def _scales(weight: Matrix, bits: int, block: int) -> NDArray[np.float32]:
    """One scale for each row and block: for 8 bits the finest that clips nothing, for 4 the one that loses least."""
    rows, cols = weight.shape
    blocks = -(-cols // block)
    padded = np.zeros((rows, blocks * block))
    padded[:, :cols] = weight
    parts = padded.reshape(rows, blocks, block)
    if bits == 8:
        return (np.abs(parts).max(-1) / 127).astype(np.float32)
    # The code -8 has no positive twin: the largest number takes it, whatever its sign.
    largest = np.take_along_axis(parts, np.abs(parts).argmax(-1)[..., None], -1)[..., 0]
    best, least = (largest / -8).astype(np.float32), np.full((rows, blocks), np.inf)
    for share in SHRINKS:
        for side in (-8, 7):
            scale = (largest * share / side).astype(np.float32).astype(np.float64)
            safe = np.where(scale == 0, 1.0, scale)[..., None]
            lost = np.square(parts - np.clip(np.rint(parts / safe), -8, 7) * safe).sum(-1)
            better = lost < least
            best[better], least[better] = scale[better], lost[better]
    return best


def even_latents(factors: Factors, moment: Matrix | None, seed: int = 0) -> Factors:
    """The same product, in coordinates in which all that lies between the factors is of one size.

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
    # Directions in which nothing ever lies get the size of the smallest that is there.
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
    seen = right if moment is None else right @ moment
    square = seen @ right.T
    if not np.trace(square) > 0:
        # Nothing ever lies between the factors.
        return np.asarray(factors.left, np.float64)
    ridge = RIDGE * float(np.trace(square)) / len(square) * np.eye(len(square))
    left, before = np.asarray(factors.left, np.float64), np.asarray(factors.right, np.float64)
    wanted = left @ (before @ seen.T) + left @ ridge
    found: Matrix = np.asarray(np.linalg.solve((square + ridge).T, wanted.T).T, np.float64)
    return found
