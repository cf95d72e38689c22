"""Sequential refit: every replacement fitted to its inputs in the compressed model, from the first layer on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lowrank.artifacts.journal import NOWHERE, Journal
from lowrank.artifacts.replacements import REPLACEMENTS
from lowrank.backends.base import Backend
from lowrank.backends.inputs import spread
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Analysis
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.refit import can_refit, kept_outputs, refitted
from lowrank.core.weight import Weight
from lowrank.progress import Track

TOKENS = 65_536
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
        layers that have no output of the dense layer to be fitted to, are as they were.
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
        refits: dict[str, Replacement] = {}
        for name, (fit, judge) in pair.moments(stage, best).items():
            weight = next(w for w in stage if w.name == name)
            original = dense.read(name)[kept_outputs(best[name], weight.rows)]
            # The two-sided metric is for weights by themselves.
            alone = structure_named(best[name].structure).by_rank
            curvature = analysis.curvatures.get(name) if alone else None
            refit = refitted(best[name], original, pair.bias(weight), fit, judge, curvature=curvature, name=name)
            if refit is not None:
                refits[name] = refit
        return refits

    for stage in track(stages, "refitting", len(stages)):
        key = f"refit: {', '.join(weight.name for weight in stage)}"
        for name, replacement in journal.kept(key, REPLACEMENTS, partial(better, stage)).items():
            best[name] = replacement
            pair.put(next(w for w in stage if w.name == name), replacement)
    return best
