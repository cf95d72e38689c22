"""Sequential refit: every replacement fitted to its inputs in the compressed model, from the first layer on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial

from lowrank.artifacts.journal import NOWHERE, Journal
from lowrank.artifacts.replacements import REPLACEMENTS
from lowrank.backends.base import Backend
from lowrank.backends.inputs import spread
from lowrank.calibrate.data import Calibration
from lowrank.calibrate.sensitivity import reference_of, some_batches
from lowrank.core.analysis import Analysis
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.refit import can_refit, kept_outputs, refitted
from lowrank.core.weight import Weight
from lowrank.parallel import threads
from lowrank.progress import Track

LOG = logging.getLogger("lowrank")
JUDGED = 4096
"""Tokens of the held-out fold that the whole model is judged on."""
TOKENS = 32_768
"""Of each fold at most; the activations of one block for all of them are held in memory, twice."""


def sequential_refit(
    calibration: Calibration,
    small: Backend,
    replacements: Mapping[str, Replacement],
    analysis: Analysis,
    track: Track,
    journal: Journal = NOWHERE,
) -> dict[str, Replacement]:
    """Refit the numbers of replacements, layer by layer, to what each layer reads in the compressed model.

    Args:
        calibration: data, with the dense model.
        small: the compressed model. Its layers are overwritten on the way, so nothing else must use it.
        replacements: what `small` was made with.
        analysis: what they were chosen from, for the metric of each weight.
        track: shows progress.
        journal: keeps each layer's result.

    Returns:
        Replacements of the same structures and ranks. Those that no refit makes better on held-out data, and those of
        layers that have no output of the dense layer to be fitted to, are as they were. So are all of them if the
        refit makes the output of the whole model worse there.
    """
    best = dict(replacements)
    dense = calibration.backend
    pair = dense.paired(small, spread(calibration.fit, TOKENS), spread(calibration.heldout, TOKENS))
    if pair is None:
        return best
    linear = [w for w in dense.weights if w.name in replacements and w.is_linear]
    stages = pair.stages([w for w in linear if can_refit(replacements[w.name])])

    def better(stage: list[Weight]) -> dict[str, Replacement]:
        """The replacements of a stage that a refit makes better."""
        moments = pair.moments(stage, best)

        def fitted(weight: Weight) -> Replacement | None:
            name, (fit, judge) = weight.name, moments[weight.name]
            original = dense.read(name)[kept_outputs(best[name], weight.rows)]
            # The two-sided metric is for weights by themselves.
            alone = structure_named(best[name].structure).by_rank
            curvature = analysis.curvatures.get(name) if alone else None
            return refitted(best[name], original, pair.bias(weight), fit, judge, curvature=curvature, name=name)

        with threads() as pool:
            found = {weight.name: refit for weight, refit in zip(stage, pool.map(fitted, stage), strict=True)}
        return {name: refit for name, refit in found.items() if refit is not None}

    for stage in track(stages, "refitting", len(stages)):
        key = f"refit: {', '.join(weight.name for weight in stage)}"
        for name, replacement in journal.kept(key, REPLACEMENTS, partial(better, stage)).items():
            best[name] = replacement
            pair.put(next(w for w in stage if w.name == name), replacement)
    if all(best[name] is replacements[name] for name in best) or _helps(calibration, replacements, best):
        return best
    return dict(replacements)


def _helps(calibration: Calibration, before: Mapping[str, Replacement], after: Mapping[str, Replacement]) -> bool:
    """Whether the whole model's output on the held-out fold is no worse after the refit.

    Each layer is refitted to what it sees while the layers before it are refitted and those after it are not. A weight
    that is applied at several depths has to serve all of them, and may then be fitted to what none of them sees.
    """
    dense = calibration.backend
    feeds = some_batches(calibration, JUDGED)
    reference = reference_of(dense, feeds, list(dense.outputs_of(feeds)))
    lost: list[float] = []
    for layers in (before, after):
        model = dense.rewrite(layers)
        lost.append(reference.loss(list(model.outputs_of(feeds))))
    if lost[1] <= lost[0]:
        return True
    LOG.warning(
        "lowrank: the refit is left out, since it makes the output worse on %s (a loss of %.3g instead of %.3g)",
        "held-out samples" if calibration.heldout else "the samples that it was fitted to",
        *reversed(lost),
    )
    return False
