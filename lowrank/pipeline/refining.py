"""Block refinement: each block of a compressed model is fitted to the dense block's outputs before it is written."""

from __future__ import annotations

from lowrank.backends.base import Backend
from lowrank.backends.memory import available_memory
from lowrank.calibrate.data import Calibration
from lowrank.errors import HealingError
from lowrank.healing.training import Training, check_trainable
from lowrank.pipeline.healing import FEWEST, hundredths
from lowrank.progress import Track, silent
from lowrank.results.parts import Refinement

STEPS = 200
"""Of each block. More of them gain more, and take longer: healing is for that."""
COPIES = 8
"""Bytes that training takes for each number of the dense model, at most: both models in float32."""


def refine(
    calibration: Calibration, small: Backend, same_size: bool = False, track: Track = silent
) -> tuple[Refinement | None, list[str]]:
    """Fit each block of a compressed model to the dense block's outputs, in place, on calibration data.

    The model is never worse on the held-out samples: it stays as it was if it would be.

    Args:
        calibration: of the dense model.
        small: the compressed model, whose module changes.
        same_size: its file may not grow: see `prepare`.
        track: shows progress.

    Returns:
        What came of it, None if it could not be done; and the reason, then.
    """
    dense = calibration.backend
    if (samples := calibration.provenance["samples"]) < FEWEST:
        return None, [f"blocks were not refined: {samples} samples are too few; give at least {FEWEST}"]
    if COPIES * dense.params > available_memory():
        return None, ["blocks were not refined: there is no memory for training beside both models"]
    try:
        check_trainable(dense)
        from lowrank.healing.distill import Samples
        from lowrank.healing.preparation import prepare

        feeds = calibration.fit
        apart = Samples(feeds[:: -(-len(feeds) // STEPS)], calibration.heldout)
        fitting = prepare(dense, small, apart, Training(steps=STEPS), same_size=same_size)
        for _ in track(hundredths(fitting.refine()), fitting.status, 100):
            pass
    except HealingError as error:
        return None, [f"blocks were not refined: {error}"]
    if not fitting.work.done:
        return None, ["blocks were not refined: none were found that can be run by themselves"]
    result = fitting.healed()
    return Refinement(before=result.before, after=result.after, steps=STEPS, kept=result.kept), []
