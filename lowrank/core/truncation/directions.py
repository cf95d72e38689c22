"""Directions: the orthonormal bases that a weight is cut to, in the metric of what its layer sees, and their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowrank.core.linalg.eigen import (
    Matrix,
    Vector,
    column_basis,
    eigh_descending,
    eigvalsh_descending,
    magnitude,
    moment_vectors,
    tail_shares,
    wide,
)
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.gram import Gram


@dataclass(frozen=True, eq=False)
class Directions:
    """Output directions of a weight in the order in which truncation keeps them.

    `basis` is rows x k orthonormal, k = min(rows, cols); `energies` are the output energies along them on the
    data that chose them, largest first. A stack has one more axis in front of either.
    """

    basis: Matrix
    energies: Vector
    reader: Matrix | None = None
    """For a projection that is not orthogonal: k x rows, what reads the outputs that `basis` writes."""

    @property
    def nbytes(self) -> int:
        """Bytes of all its numbers."""
        return sum(each.nbytes for each in (self.basis, self.energies, self.reader) if each is not None)

    def truncate(self, weight: Matrix, rank: int) -> Factors:
        """`left = U_r`, `right = U_r' W`, balanced: the projection of the outputs on the first `rank` directions."""
        left = self.basis[..., :rank]
        read = left.swapaxes(-1, -2) if self.reader is None else self.reader[:rank]
        scale = magnitude(weight)
        return Factors(left, read @ (weight / scale)).balanced(scale)


# A trace of the plain metric keeps directions that no calibration token reached in the order of the weight's own
# spectrum instead of an arbitrary one. It is far below what calibration noise changes.
RIDGE = 1e-6
UNSEEN = 0.3
"""The ridge of a table: rows that the data did not show will be looked up, too. Measured (`tools/bench_tables.py`)."""


def _metric(core: Matrix, basis: Matrix | None, gram: Gram | None, ridge: float, scale: float) -> Matrix:
    plain = core @ core.T
    if gram is None or not gram.informs:
        return plain
    mean_input_energy = gram.energy / gram.tokens / core.shape[1]
    return gram.metric(core, basis, scale) + ridge * mean_input_energy * plain


def directions(weight: Matrix, gram: Gram | None = None, *, ridge: float = RIDGE, name: str = "matrix") -> Directions:
    """The order of output directions that makes every truncation optimal for the data of `gram`.

    The minimiser of `E|Wx - W_r x|^2` over matrices of rank r is `U_r U_r' W`, with `U_r` the leading
    eigenvectors of `W C W'`, `C = E[x x']` (reduced-rank regression; DRONE, NeurIPS 2021; AFM, AAAI 2023). No
    Cholesky factor, no inverse and no damping: it is right for a singular `C` too. A tall `W` is first reduced by its
    thin QR, so the eigenproblem has min(rows, cols) rows and nothing is ever divided by a singular value.

    Args:
        weight: rows x cols, float64, or a stack of them, whose matrices are taken one by one.
        gram: moment of the layer's inputs or outputs; None, or one of nothing but zeros, gives the plain SVD's.
        ridge: the share of the plain metric, in units of the mean energy of an input.
        name: the weight's name, for errors.

    Raises:
        DecompositionError: if no solver converges.

    Example:
        >>> w = np.diag([3.0, 2.0, 1.0])
        >>> directions(w).truncate(w, 2).product().diagonal().tolist()
        [3.0, 2.0, 0.0]
    """
    if weight.ndim == 3:
        parts = [directions(w, gram and gram.part(i), ridge=ridge, name=name) for i, w in enumerate(weight)]
        return Directions(np.stack([p.basis for p in parts]), np.stack([p.energies for p in parts]))
    # Directions do not depend on scale, and squares of extreme numbers would leave float64.
    scale = magnitude(weight)
    basis, core = column_basis(weight / scale)
    energies, vectors = eigh_descending(_metric(core, basis, gram, ridge, scale), name=name)
    return Directions(vectors if basis is None else basis @ vectors, _scaled(energies, scale))


def thin_directions(
    factors: Factors, gram: Gram | None = None, *, ridge: float = RIDGE, name: str = "matrix"
) -> Directions:
    """`directions` of a product of two factors, by the QR of the thin one: the eigenproblem has rank rows.

    Only the directions that the product has are given, rank of them.

    Args:
        factors: of a matrix, or of a stack of them.
        gram: see `directions`; a moment of outputs may be that of more than the product gives.
        ridge: see `directions`.
        name: the weight's name, for errors.

    Example:
        >>> f = Factors(np.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), np.eye(2))
        >>> thin_directions(f).energies.tolist()
        [9.0, 4.0]
    """
    if factors.left.ndim == 3:
        pairs = zip(factors.left, factors.right, strict=True)
        parts = [
            thin_directions(Factors(left, right), gram and gram.part(i), ridge=ridge, name=name)
            for i, (left, right) in enumerate(pairs)
        ]
        return Directions(np.stack([p.basis for p in parts]), np.stack([p.energies for p in parts]))
    basis, triangle = np.linalg.qr(factors.left)
    core: Matrix = np.asarray(triangle @ factors.right, np.float64)
    scale = magnitude(core)
    energies, vectors = eigh_descending(_metric(core / scale, basis, gram, ridge, scale), name=name)
    return Directions(basis @ vectors, _scaled(energies, scale))


def plain_truncation(weight: Matrix, rank: int, name: str = "matrix", leading: Matrix | None = None) -> Factors:
    """The best factors of a rank in the plain metric (Eckart and Young 1936), with one eigenproblem and no QR.

    Of a wide matrix `U_r (U_r' W)`, of a tall one `(W V_r) V_r'`, with leading singular vectors of the smaller side.

    Args:
        weight: rows x cols, in float64 or float32, which the factors then have, too.
        rank: of the factors.
        name: the weight's name, for errors.
        leading: those singular vectors of the smaller side that are known, as columns; with as many as the rank there
            is no eigenproblem.

    Example:
        >>> plain_truncation(np.diag([3.0, 2.0, 1.0]), 2).product().diagonal().tolist()
        [3.0, 2.0, 0.0]
    """
    scale = magnitude(weight)
    unit = weight / weight.dtype.type(scale)
    if leading is None or leading.shape[1] < rank:
        leading = moment_vectors(wide(unit), name=name)[1]
    basis = leading[:, :rank].astype(weight.dtype)
    if weight.shape[0] <= weight.shape[1]:
        return Factors(basis, basis.T @ unit).balanced(scale)
    return Factors(unit @ basis, basis.T).balanced(scale)


def _scaled(energies: Vector, scale: float) -> Vector:
    """The energies of a weight from those of the weight over its scale: infinite where float64 ends."""
    with np.errstate(over="ignore", under="ignore"):
        return energies * scale * scale


def residual_curve(chosen: Directions, weight: Matrix | Factors, gram: Gram | None) -> Vector:
    """Squared relative error at rank 0 ... k on the data of `gram`, whatever data chose the directions.

    On a held-out fold this is unbiased: `err(r) = tr M - sum_(i<=r) u_i' M u_i` with `M = E[(Wx)(Wx)']` of that
    fold. One product gives the curve for all ranks.

    Args:
        chosen: the directions.
        weight: rows x cols, or its two factors; a stack has one more axis.
        gram: of the weight's inputs or outputs; None, or one of nothing but zeros, gives the plain metric.

    Returns:
        k + 1 numbers from 1 down to 0.
    """
    basis, across = chosen.basis, chosen.basis.swapaxes(-1, -2)
    if gram is not None and gram.informs and gram.side == "output":
        captured = np.einsum("...ij,...ij->...j", gram.moment @ basis, basis)
    else:
        two = isinstance(weight, Factors)
        projected = (across @ weight.left) @ weight.right if two else across @ (weight / magnitude(weight))
        weighted = projected @ gram.moment if gram is not None and gram.informs else projected
        captured = np.einsum("...ij,...ij->...i", weighted, projected)
    return tail_shares(_of_stack(np.maximum(captured, 0.0)))


def _of_stack(energies: Vector) -> Vector:
    """Energies by rank of a stack as a whole: what every matrix keeps at a rank adds up."""
    return energies if energies.ndim == 1 else energies.sum(0)


@dataclass(frozen=True, eq=False)
class Measurement:
    """What an analysis needs of one weight: spectra in both metrics, and the error at every rank."""

    plain: Vector
    """Singular values, largest first."""
    activation: Vector
    """Singular values in the metric of the data."""
    curve: Vector
    """Squared relative error at rank 0 ... k on the judging fold."""


def measure(weight: Matrix, fit: Gram, judge: Gram, *, ridge: float = RIDGE, name: str = "matrix") -> Measurement:
    """The figures of `directions` and `residual_curve`, without forming the directions themselves.

    Errors do not depend on the coordinates that outputs are written in. So a tall weight is replaced by the square
    root of `W'W`, `core = S V'`, which its plain spectrum gives along the way: no QR, and nothing is divided.

    Args:
        weight: rows x cols, float64, or a stack of them.
        fit: the fold that chooses directions, with tokens in it; of the outputs only if the weight is not tall.
        judge: the fold that the errors are measured on, of the same side.
        ridge: see `directions`.
        name: the weight's name, for errors.

    Raises:
        DecompositionError: if no solver converges.
    """
    # One scale for a whole stack, whose energies are added.
    scale = magnitude(weight)
    unit = weight / scale
    if weight.ndim == 3:
        parts = [_measure(w, fit.part(i), judge.part(i), ridge, scale, name) for i, w in enumerate(unit)]
    else:
        parts = [_measure(unit, fit, judge, ridge, scale, name)]
    plain, activation, captured = (_of_stack(np.stack(energies)) for energies in zip(*parts, strict=True))
    return Measurement(scale * np.sqrt(plain), scale * np.sqrt(activation), tail_shares(captured))


def _measure(
    unit: Matrix, fit: Gram, judge: Gram, share: float, scale: float, name: str
) -> tuple[Vector, Vector, Vector]:
    """Energies of one matrix over its scale: plain, in the metric of `fit`, and on `judge` along the directions that
    `fit` chose."""
    rows, cols = unit.shape
    if rows > cols and "output" in (fit.side, judge.side):
        raise ValueError("a tall weight is measured by the moments of its inputs, which are the smaller ones")
    if rows <= cols:
        core, plain = unit, unit @ unit.T
        squares = eigvalsh_descending(plain, name=name)
    else:
        squares, vectors = eigh_descending(unit.T @ unit, name=name)
        core, plain = np.sqrt(squares)[:, None] * vectors.T, np.diag(squares)
    ridge = share * fit.energy / fit.tokens / cols * plain
    energies, chosen = eigh_descending(fit.metric(core, None, scale) + ridge, name=name)
    captured = np.maximum(np.einsum("ij,ij->j", judge.metric(core, None, scale) @ chosen, chosen), 0.0)
    return squares, energies, captured


SHRINKAGE = 0.3
"""How far an output's curvature is shrunk toward a multiple of the identity: it is known from few gradients, and
inverted (LEMS, ICML 2026, found 0.3 right for language models)."""


def curved_directions(
    weight: Matrix, gram: Gram, curvature: Matrix, *, ridge: float = RIDGE, name: str = "matrix"
) -> Directions:
    """The order of output directions that is best for the model's output rather than for the weight's own.

    Minimises `|G^(1/2) (W - W_r) C^(1/2)|` with `C` the inputs' moment and `G` the curvature of the model's output
    with respect to this one, shrunk: `W_r = G^(-1/2) P_r P_r' G^(1/2) W`, `P` the eigenvectors of
    `G^(1/2) W C W' G^(1/2)` (a Kronecker-factored second-order metric; KFAC-SVD and IO-SVD, 2026). For weights that are
    not tall.
    """
    root, inverse = curved_roots(curvature, name)
    scale = magnitude(weight)
    energies, vectors = eigh_descending(root @ _metric(weight / scale, None, gram, ridge, scale) @ root, name=name)
    return Directions(inverse @ vectors, _scaled(energies, scale), vectors.T @ root)


def curved_curve(chosen: Directions, weight: Matrix, gram: Gram) -> Vector:
    """Squared relative error of the weight's own output at rank 0 ... k along directions that are not orthogonal."""
    assert chosen.reader is not None
    scale = magnitude(weight)
    moment = gram.metric(weight / scale, None, scale)
    lost = trailing_blocks((chosen.basis.T @ chosen.basis) * (chosen.reader @ moment @ chosen.reader.T))
    total = float(np.trace(moment))
    return np.maximum(lost, 0.0) / total if total > 0 else np.zeros_like(lost)


def trailing_blocks(square: Matrix) -> Vector:
    """The sums of the blocks from row and column 0, 1, ..., k on."""
    return np.concatenate([np.cumsum(np.cumsum(square[::-1, ::-1], 0), 1).diagonal()[::-1], [0.0]])


def curved_roots(curvature: Matrix, name: str = "matrix") -> tuple[Matrix, Matrix]:
    """The root of a shrunk curvature, and its inverse."""
    mean = float(np.trace(curvature)) / len(curvature)
    values, vectors = eigh_descending(
        (1 - SHRINKAGE) * curvature + SHRINKAGE * (mean or 1.0) * np.eye(len(curvature)), name=name
    )
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T
