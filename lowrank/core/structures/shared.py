"""SharedBasis: weights that read one input, as one thin matrix for all of them and one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.core.analysis import Analysis, CouplingAnalysis, Folds, Numbers
from lowrank.core.linalg.eigen import Matrix, Vector, magnitude
from lowrank.core.selection.timings import Timings
from lowrank.core.structures.base import Option, Replacement, typed
from lowrank.core.structures.coupled import Coupled, inputs_known
from lowrank.core.truncation.directions import directions, residual_curve
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.gram import Gram
from lowrank.core.weight import Coupling, Group, Weight


@dataclass(frozen=True)
class SharedBasis(Coupled):
    """Rank (all rows + cols) numbers; `right` is one tensor, which the layers share."""

    name: str = "shared"
    fits: ClassVar[str] = "several weights that read one input"
    keeps_channels: ClassVar[bool] = True
    shares_basis: ClassVar[bool] = True
    even_latents: ClassVar[bool] = True
    nodes: ClassVar[int] = 2

    def measure(self, coupling: Coupling, grams: Mapping[str, Folds], numbers: Numbers) -> CouplingAnalysis | None:
        """Held-out errors of the stacked weights, each in units of its own output."""
        if coupling.kind != "same_input" or not inputs_known(grams, coupling.weights[0]):
            return None
        folds = grams[coupling.weights[0]]
        stacked, _ = _stacked(coupling, folds.fit, numbers)
        errors = residual_curve(directions(stacked, folds.fit, name=coupling.weights[0]), stacked, folds.judge)
        return CouplingAnalysis(Group.of(coupling), self.name, np.arange(len(errors), dtype=np.int64), errors)

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """The stack's factors, cut into those of each weight."""
        assert group.coupling is not None
        fit = analysis.grams[group.weights[0]].fit
        stacked, scales = _stacked(group.coupling, fit, numbers)
        whole = directions(stacked, fit, name=group.name).truncate(stacked, rank)
        ends = np.cumsum([analysis[name].weight.rows for name in group.weights])
        parts = np.split(np.asarray(whole.left), ends[:-1])
        named = zip(group.weights, parts, scales, strict=True)
        return {name: Replacement(self.name, Factors(left * scale, whole.right)) for name, left, scale in named}

    def each(self, coupling: Coupling, analysis: Analysis) -> int:
        """Numbers for each direction of the basis."""
        weights = [analysis[name].weight for name in coupling.weights]
        return sum(w.rows for w in weights) + weights[0].cols

    def time(self, table: Timings, rank: int, group: Group, weights: Sequence[Weight]) -> float:
        """One product for all weights, and one for each."""
        first, *_ = weights
        seconds = sum(table.product(rank, weight.rows) for weight in weights)
        return first.products * (table.product(first.cols, rank) + seconds)

    def described(self, option: Option, name: str, analysis: Analysis) -> tuple[int | None, str]:
        """Its rank is that of the basis."""
        of, count = (
            f"rank {option.rank} of {analysis[name].weight.full_rank}",
            len(analysis.groups[option.group].weights),
        )
        return option.rank, f"{of}, one basis for {count} weights{typed(option)}"


def _stacked(coupling: Coupling, fit: Gram, numbers: Numbers) -> tuple[Matrix, Vector]:
    """The weights on top of each other, each over the root of its output's energy, which is returned too: a weight with
    large outputs would have the basis for itself otherwise.

    The roots are in units of the largest, so that the stack stays of the size of the weights, which their types hold.
    """
    matrices = [numbers.read(name) for name in coupling.weights]
    moment = fit.moment / max(fit.tokens, 1)
    roots = np.array([float(np.sqrt(max(np.vdot(m @ moment, m), 0.0))) for m in matrices])
    scales = np.where(roots > 0, roots / magnitude(roots), 1.0)
    return np.concatenate([m / s for m, s in zip(matrices, scales, strict=True)]), scales
