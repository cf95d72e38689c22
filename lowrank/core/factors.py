"""Factors: two thin matrices in place of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank.core.gram import Gram
from lowrank.core.linalg import Matrix, Vector, column_basis, eigh_descending, magnitude


@dataclass(frozen=True, eq=False)
class Factors:
    """`left @ right`, rows x rank times rank x cols: the input meets `right` first."""

    left: NDArray[np.floating]
    right: NDArray[np.floating]

    @property
    def rank(self) -> int:
        """The inner width."""
        return int(self.left.shape[1])

    def product(self) -> NDArray[np.floating]:
        """The dense matrix that the factors stand for."""
        return self.left @ self.right


@dataclass(frozen=True, eq=False)
class Directions:
    """Output directions of a weight in the order in which truncation keeps them.

    `basis` is rows x k orthonormal, k = min(rows, cols); `energies` are the output energies along them on the
    data that chose them, largest first.
    """

    basis: Matrix
    energies: Vector

    def truncate(self, weight: Matrix, rank: int) -> Factors:
        """`left = U_r`, `right = U_r' W`: the projection of the outputs on the first `rank` directions."""
        left = self.basis[:, :rank]
        return Factors(left, left.T @ weight)


# A trace of the plain metric keeps directions that no calibration token reached in the order of the weight's own
# spectrum instead of an arbitrary one. It is far below what calibration noise changes.
RIDGE = 1e-6


def _metric(core: Matrix, basis: Matrix | None, gram: Gram | None) -> Matrix:
    plain = core @ core.T
    if gram is None or gram.tokens == 0:
        return plain
    mean_input_energy = gram.energy / gram.tokens / core.shape[1]
    return gram.metric(core, basis) + RIDGE * mean_input_energy * plain


def directions(weight: Matrix, gram: Gram | None = None, *, name: str = "matrix") -> Directions:
    """The order of output directions that makes every truncation optimal for the data of `gram`.

    The minimiser of `E|Wx - W_r x|^2` over matrices of rank r is `U_r U_r' W`, with `U_r` the leading
    eigenvectors of `W C W'`, `C = E[x x']` (reduced-rank regression; DRONE, NeurIPS 2021; AFM, AAAI 2023). No
    Cholesky factor,
    no inverse and no damping: it is right for a singular `C` too. A tall `W` is first reduced by its thin QR,
    so the eigenproblem has min(rows, cols) rows and nothing is ever divided by a singular value.

    Args:
        weight: rows x cols, float64.
        gram: moment of the layer's inputs or outputs; None, or an empty one, gives the plain SVD's directions.
        name: the weight's name, for errors.

    Raises:
        DecompositionError: if no solver converges.

    Example:
        >>> w = np.diag([3.0, 2.0, 1.0])
        >>> directions(w).truncate(w, 2).product().diagonal().tolist()
        [3.0, 2.0, 0.0]
    """
    if gram is None or gram.tokens == 0:
        # Directions do not depend on scale, and squares of extreme numbers would leave float64.
        scale = magnitude(weight)
        basis, core = column_basis(weight / scale)
    else:
        scale = 1.0
        basis, core = column_basis(weight)
    energies, vectors = eigh_descending(_metric(core, basis, gram), name=name)
    return Directions(vectors if basis is None else basis @ vectors, energies * scale**2)


def residual_curve(chosen: Directions, weight: Matrix, gram: Gram) -> Vector:
    """Squared relative error at rank 0 ... k on the data of `gram`, whatever data chose the directions.

    On a held-out fold this is unbiased: `err(r) = tr M - sum_(i<=r) u_i' M u_i` with `M = E[(Wx)(Wx)']` of that
    fold. One product gives the curve for all ranks.

    Returns:
        k + 1 numbers from 1 down to 0.
    """
    projected = chosen.basis.T @ weight
    if gram.side == "input":
        captured = np.einsum("ij,ij->i", projected @ gram.moment, projected)
    else:
        captured = np.einsum("ij,ij->j", gram.moment @ chosen.basis, chosen.basis)
    captured = np.maximum(captured, 0.0)
    tail = np.concatenate([np.cumsum(captured[::-1])[::-1], [0.0]])
    return tail / tail[0] if tail[0] > 0 else np.zeros_like(tail)
