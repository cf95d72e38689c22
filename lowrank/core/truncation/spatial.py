"""Spatial factors of a k x k convolution: its error at every rank, in the same units as the channel factors'."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.truncation.directions import Directions, directions
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.gram import Gram
from lowrank.core.weight import Weight


@dataclass(frozen=True, eq=False)
class SpatialFactors(Factors):
    """Two factors of a convolution's spatial matrix: `left` is a vertical convolution, `right` a horizontal one."""

    def pair(self) -> None:
        """None: it is another matrix that they are factors of."""

    def dense(self, weight: Weight) -> NDArray[np.floating]:
        """The weight's matrix of channels."""
        return channel_matrix(weight, self.product())


def spatial_matrix(weight: Weight, matrix: Matrix) -> Matrix:
    """The weight's other matrix, (outputs, kernel rows) x (inputs, kernel columns), from its first one."""
    assert weight.spatial is not None
    return np.asarray(weight.spatial.matrix(weight.view.stored_from(matrix)), np.float64)


def channel_matrix(weight: Weight, spatial: NDArray[np.floating]) -> Matrix:
    """The weight's first matrix from its spatial one: the inverse of `spatial_matrix`."""
    assert weight.spatial is not None
    return np.asarray(weight.view.matrix(weight.spatial.stored_from(spatial)), np.float64)


def spatial_directions(weight: Weight, matrix: Matrix, fit: Gram | None) -> Directions:
    """The order in which a truncation of the spatial matrix keeps directions.

    The horizontal convolution sees rows of patches, so their moment is the part of the patches' moment within one
    row of the kernel, summed over its rows. The vertical convolution then adds up what the rows of the kernel gave;
    this order takes no account of that sum, but `spatial_curve` does.
    """
    gram = None if fit is None or fit.tokens == 0 else Gram("input", _row_moment(weight, fit), fit.tokens, fit.energy)
    return directions(spatial_matrix(weight, matrix), gram, name=weight.name)


def spatial_curve(weight: Weight, matrix: Matrix, fit: Gram | None, judge: Gram | None) -> Vector:
    """Squared relative output error of the convolution at rank 0 ... k of its spatial matrix.

    A rank-one term `u v'` of the spatial matrix, put back into the kernel, is `T[o, i h w] = u[o h] v[i w]`. What is
    left out at rank r is the sum of the terms after r, so its energy is the sum of their inner products in the metric
    of the patches: `<T_a, T_b> = sum_hh' (u_a' u_b)_hh' (v_a' C_hh' v_b)`, with C in blocks over kernel rows (Jaderberg
    et al., BMVC 2014, for the structure). Exact for every rank, by one pass over pairs of kernel rows.

    Args:
        weight: the convolution's record.
        matrix: its channel matrix, rows x cols.
        fit: moment of the patches that chooses directions; None takes the plain metric.
        judge: moment of the patches that errors are measured on.
    """
    sizes = dict(weight.spatial.sizes) if weight.spatial else {}
    o, i, h, w = (sizes[axis] for axis in "oihw")
    chosen = spatial_directions(weight, matrix, fit)
    left = chosen.basis.reshape(o, h, -1)
    right = chosen.basis.T @ spatial_matrix(weight, matrix)
    inner = np.zeros((len(right), len(right)))
    if judge is None or judge.tokens == 0:
        inner += np.einsum("ohk,ohl->kl", left, left) * (right @ right.T)
    else:
        blocks = judge.moment.reshape(i, h, w, i, h, w)
        for a in range(h):
            for b in range(h):
                block = blocks[:, a, :, :, b, :].reshape(i * w, i * w)
                inner += (left[:, a].T @ left[:, b]) * (right @ block @ right.T)
    trailing = inner[::-1, ::-1].cumsum(0).cumsum(1).diagonal()[::-1]
    lost = np.maximum(np.append(trailing, 0.0), 0.0)
    return lost / lost[0] if lost[0] > 0 else np.zeros_like(lost)


def _row_moment(weight: Weight, gram: Gram) -> Matrix:
    sizes = dict(weight.spatial.sizes) if weight.spatial else {}
    i, h, w = (sizes[axis] for axis in "ihw")
    return np.einsum("ahbchd->abcd", gram.moment.reshape(i, h, w, i, h, w)).reshape(i * w, i * w)
