"""Neurons: a feed-forward block with fewer of them, the last weight fitted to those that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.core.analysis import Analysis, CouplingAnalysis, Folds, Numbers
from lowrank.core.selection.timings import Timings
from lowrank.core.structures.base import FactorKind, Option, Replacement, typed
from lowrank.core.structures.coupled import Coupled, inputs_known
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.truncation.neurons import neuron_curve, neuron_order, refit
from lowrank.core.weight import Coupling, Group, Weight


@dataclass(frozen=True)
class Neurons(Coupled):
    """Rank is the number of neurons that stay: no operator more, and no break-even."""

    name: str = "neurons"
    fits: ClassVar[str] = "the weights of one feed-forward block"
    factors: ClassVar[FactorKind] = Narrow
    fixed_order: ClassVar[bool] = True

    def measure(self, coupling: Coupling, grams: Mapping[str, Folds], numbers: Numbers) -> CouplingAnalysis | None:
        """The order in which neurons are kept, and held-out errors; None without moments of the hidden activations."""
        last = coupling.weights[-1]
        if coupling.kind != "hidden" or not inputs_known(grams, last):
            return None
        folds = grams[last]
        weight, shifts = numbers.read(last), numbers.bias(last) is not None
        fit, judge = (g.covariance if shifts else g.moment / max(g.tokens, 1) for g in (folds.fit, folds.judge))
        order = neuron_order(weight, fit)
        ranks, errors = neuron_curve(weight, order, fit, judge)
        return CouplingAnalysis(Group.of(coupling), self.name, ranks, errors, order)

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """The rows of the first weights and the columns of the last that stay; what is lost on average goes into the
        bias."""
        record = analysis.coupling(group, self.name)
        assert record is not None and record.order is not None
        neurons = np.sort(record.order[:rank])
        *first, last = group.weights
        gram, weight, bias = analysis.grams[last].fit, numbers.read(last), numbers.bias(last)
        fitted = refit(weight, gram.moment / max(gram.tokens, 1) if bias is None else gram.covariance, neurons)
        if bias is not None:
            bias = bias + weight @ gram.mean - fitted @ gram.mean[neurons]
        spread = np.full(weight.shape[1], -1, np.int64)
        spread[neurons] = np.arange(len(neurons))
        replacements = {last: Replacement(self.name, Narrow(fitted, inputs=neurons, rank=rank), bias)}
        for name in first:
            before = numbers.bias(name)
            rows = Narrow(numbers.read(name)[neurons], outputs=spread, rank=rank)
            replacements[name] = Replacement(self.name, rows, None if before is None else before[neurons])
        return replacements

    def each(self, coupling: Coupling, analysis: Analysis) -> int:
        """Numbers for each neuron."""
        *first, last = (analysis[name].weight for name in coupling.weights)
        return sum(w.cols for w in first) + last.rows

    def time(self, table: Timings, rank: int, group: Group, weights: Sequence[Weight]) -> float:
        """Narrower products, and activations of fewer channels."""
        *first, last = weights
        products = sum(table.product(weight.cols, rank) for weight in first) + table.product(rank, last.rows)
        activations = len(first) * (table.at("activation", 0, rank) - table.at("activation", 0, last.cols))
        return last.products * (products + activations)

    def described(self, option: Option, name: str, analysis: Analysis) -> tuple[int | None, str]:
        """Neurons are no directions of a spectrum."""
        first = analysis[analysis.groups[option.group].weights[0]].weight
        return None, f"{option.rank} of {first.rows} neurons{typed(option)}"
