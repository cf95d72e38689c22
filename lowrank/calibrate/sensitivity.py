"""Measured sensitivity: what cutting one group does to the model's output. No labels needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from threading import Lock

import numpy as np

from lowrank.artifacts.journal import ARRAYS, FACTS, NOWHERE, Journal
from lowrank.backends.base import Backend, Change, Outputs, signature_of
from lowrank.backends.inputs import Feed
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Analysis, Measured, Numbers
from lowrank.core.distance import Reference, References
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement, Structure
from lowrank.core.structures.two_factor import TwoFactor
from lowrank.core.weight import Group
from lowrank.parallel import threads, windowed_map
from lowrank.progress import Track

KEEPS = (0.6, 0.25)
"""Each group is cut to the ranks that keep these shares of it."""
BATCHES = 8
TOKENS = 2048
CURVATURE_TOKENS = 16_384
FLOOR = 1e-3
"""Of the median: a weight that these samples happen not to move is not free to be destroyed."""


def measure_sensitivity(
    calibration: Calibration, analysis: Analysis, track: Track, journal: Journal = NOWHERE
) -> Analysis:
    """The analysis with what was measured of every group and structure.

    Layer errors are not comparable as they are: a feed-forward output may carry most of its energy in a few directions
    that never matter, and then looks easy to truncate. Measurements put all groups and all structures on the scale of
    the model's output (the idea of LEMS, ICML 2026, with several ranks and an output's own measure).
    """
    backend = calibration.backend
    feeds = some_batches(calibration)
    tasks: list[tuple[Group, Structure]] = [(group, TwoFactor()) for group in analysis.singles]
    tasks += [(coupling.group, structure_named(coupling.structure)) for coupling in analysis.couplings]
    place = {single.name: i for i, single in enumerate(analysis.singles)}
    # In the order of the model, so that what comes before is run once.
    tasks.sort(key=lambda task: min(place[name] for name in task[0].weights))
    # Without held-out samples nothing could tell whether that metric is better.
    names = _not_tall(analysis) if calibration.heldout else []
    curvatures = journal.kept(
        "curvatures",
        ARRAYS,
        lambda: backend.curvature(some_batches(calibration, CURVATURE_TOKENS, fit=True), names),
    )
    results: dict[tuple[str, str], Measured] = {}
    trying = Lock()
    prepared = partial(_prepared, Undisturbed(backend, trying), analysis, curvatures, journal)
    with backend.trials(feeds) as run, threads() as pool:
        reference = reference_of(backend, feeds, run({}))

        def loss(trials: Trials, index: int) -> float:
            changes = trials.changes(index)
            with trying:
                return reference.loss(run(changes))

        def decided(trials: Sequence[Trials]) -> tuple[Measured, bool]:
            """The measurements, and whether they are of factors in the two-sided metric."""
            strongest = [loss(each, -1) for each in trials]
            # That metric is a guess at what matters: it is used where the strongest cut is no worse with it.
            curved = strongest[-1] <= strongest[0] and len(trials) > 1
            chosen = trials[-1] if curved else trials[0]
            lost = [loss(chosen, i) for i in range(len(KEEPS) - 1)]
            pairs = zip(chosen.errors, [*lost, strongest[-1 if curved else 0]], strict=True)
            return tuple(pairs), curved

        # What comes next is decomposed while this is tried, one task for each thread, as memory is what limits it.
        ahead = windowed_map(prepared, tasks, pool.executor, pool.jobs)
        for group, structure in track(tasks, "measuring sensitivity", len(tasks)):
            make = partial(decided, next(ahead))
            pairs, curved = journal.kept(_key(group, structure), FACTS, make)
            if curved:
                analysis = analysis.with_curvature(group.name, backend.read(group.name), curvatures[group.name])
            results[group.name, structure.name] = tuple(sorted((own, lost) for own, lost in pairs))
    results = _floored(results)
    return replace(
        analysis,
        weights=tuple(replace(r, measured=results[r.weight.name, TwoFactor().name]) for r in analysis.weights),
        couplings=tuple(replace(b, measured=results[b.group.name, b.structure]) for b in analysis.couplings),
    )


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """The numbers of a model, read while no trial has others in their places."""

    numbers: Numbers
    trying: Lock

    def read(self, name: str) -> Matrix:
        """A weight."""
        with self.trying:
            return self.numbers.read(name)

    def bias(self, name: str) -> Vector | None:
        """A bias."""
        with self.trying:
            return self.numbers.bias(name)


@dataclass(frozen=True, slots=True)
class Trials:
    """A group cut to the shares of `KEEPS`: what replaces its weights, and the errors of its own output."""

    replacements: list[Mapping[str, Replacement]]
    errors: list[float]
    analysis: Analysis

    @classmethod
    def of(cls, group: Group, structure: Structure, analysis: Analysis, numbers: Numbers) -> Trials:
        """Factorised as the analysis says."""
        ranks = [_rank_at(keep, structure, group, analysis) for keep in KEEPS]
        made = [structure.factorize(group, rank, analysis, numbers) for rank in ranks]
        return cls(made, [structure.at(group, analysis, rank).error for rank in ranks], analysis)

    def changes(self, index: int) -> dict[str, Change]:
        """The numbers that the dense weights have in one of the trials."""
        return changes_of(self.replacements[index], self.analysis)


def _prepared(
    numbers: Numbers,
    analysis: Analysis,
    curvatures: Mapping[str, Matrix],
    journal: Journal,
    task: tuple[Group, Structure],
) -> list[Trials]:
    """What is tried of a group: in the metric of its data, and in that of the output where there is one; nothing where
    an earlier run has measured it."""
    group, structure = task
    if journal.has(_key(group, structure)):
        return []
    found = [Trials.of(group, structure, analysis, numbers)]
    if structure.name == TwoFactor().name and group.name in curvatures:
        curved = analysis.with_curvature(group.name, numbers.read(group.name), curvatures[group.name])
        found.append(Trials.of(group, structure, curved, numbers))
    return found


def _key(group: Group, structure: Structure) -> str:
    return f"sensitivity: {structure.name}: {group.name}"


def reference_of(backend: Backend, feeds: Sequence[Feed], outputs: Sequence[Outputs]) -> References:
    """The outputs of the dense model on some batches, by which others are judged."""
    signature = signature_of(backend)
    parts: dict[str, Reference] = {}
    for output in signature.compared:
        counted = [signature.counted(feed, output) for feed in feeds]
        parts[output.name] = Reference(
            [np.atleast_1d(y[output.name]) for y in outputs], output.kind, counted, output.over_positions
        )
    return References(parts)


def changes_of(replacements: Mapping[str, Replacement], analysis: Analysis) -> dict[str, Change]:
    """Replacements as other numbers in the dense weights, for a trial."""
    weights = {name: analysis[name].weight for name in replacements}
    return {name: (r.dense(weights[name]), r.dense_bias(weights[name])) for name, r in replacements.items()}


def _rank_at(keep: float, structure: Structure, group: Group, analysis: Analysis) -> int:
    cost = structure.at(group, analysis, 1).cost
    return max(1, int(keep * analysis.params(group) / cost))


def _floored(results: Mapping[tuple[str, str], Measured]) -> dict[tuple[str, str], Measured]:
    """No ratio of output to own error far below the median, and no infinite one."""
    ratios = [lost / own for pairs in results.values() for own, lost in pairs if own > 0 and 0 < lost < np.inf]
    floor = FLOOR * median(ratios) if ratios else 1.0
    most = max(ratios, default=1.0)
    return {
        key: tuple((own, min(max(lost, floor * own), most * own)) for own, lost in pairs if own > 0)
        for key, pairs in results.items()
    }


def _not_tall(analysis: Analysis) -> list[str]:
    """Weights that directions can be chosen for in their outputs' space, from moments that they have."""
    plain = [r.weight for r in analysis.weights if r.weight.stack == 1 and r.weight.rows <= r.weight.cols]
    return [weight.name for weight in plain if weight.name in analysis.grams]


def some_batches(calibration: Calibration, tokens: int = TOKENS, *, fit: bool = False) -> list[Feed]:
    """A few batches, spread over the lengths that there are, cut to an equal share of the tokens.

    Args:
        calibration: where from.
        tokens: about how many there are to be.
        fit: from the fold that chooses; by default from the held-out one.
    """
    batches: Sequence[Feed] = calibration.fit if fit else calibration.heldout or calibration.fit
    count = min(BATCHES * max(1, tokens // TOKENS), len(batches))
    spread = [batches[(2 * i + 1) * len(batches) // (2 * count)] for i in range(count)]
    return [{name: values[: _rows(batch, tokens // count)] for name, values in batch.items()} for batch in spread]


def _rows(batch: Feed, tokens: int) -> int:
    first = next(iter(batch.values()))
    return max(1, tokens // (first.shape[1] if first.ndim == 2 else 16))
