"""Spectrum: singular values and the figures that are read off them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lowrank.core.linalg.eigen import Vector, tail_shares


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a matrix, largest first, all min(rows, cols) of them.

    In the metric of activations they are those of `W C^(1/2)`, `C` being the input's second moment: the
    energy of a direction is then the output energy it carries.

    Example:
        >>> Spectrum(np.array([3.0, 4.0][::-1])).relative_error(1)
        0.6
    """

    values: Vector

    @cached_property
    def tail_energy(self) -> Vector:
        """Energy that is lost at rank 0, 1, ..., k, as a share of all (k + 1 numbers, from 1 down to 0).

        This is the squared relative error of the best rank-r approximation (Eckart and Young 1936, Mirsky 1960).
        """
        top = float(self.values[0]) if len(self.values) else 0.0
        energy = (self.values / top) ** 2 if top > 0 else np.zeros_like(self.values)
        return tail_shares(energy)

    def relative_error(self, rank: int) -> float:
        """`|W - W_r| / |W|` in the spectrum's own metric."""
        return float(np.sqrt(self.tail_energy[min(rank, len(self.values))]))

    def rank_at_energy(self, energy: float) -> int:
        """The smallest rank that keeps at least this share of the energy (0.95, say)."""
        return int(np.argmax(self.tail_energy <= 1.0 - energy + 1e-12))

    @cached_property
    def stable_rank(self) -> float:
        """`|W|_F^2 / |W|_2^2` (Rudelson and Vershynin 2007); 0 for a zero matrix."""
        top = float(self.values[0]) if len(self.values) else 0.0
        return float(np.sum((self.values / top) ** 2)) if top > 0 else 0.0

    @cached_property
    def effective_rank(self) -> float:
        """Exponential of the entropy of the normalised singular values (Roy and Vetterli 2007)."""
        total = float(self.values.sum())
        if total <= 0:
            return 0.0
        share = self.values[self.values > 0] / total
        return float(np.exp(-np.sum(share * np.log(share))))
