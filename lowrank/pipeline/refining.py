"""Block refinement: each block of a compressed model is fitted to the dense block's outputs before it is written."""

from __future__ import annotations

from lowrank.backends.base import Backend
from lowrank.backends.memory import available_memory
from lowrank.core.plan import Plan
from lowrank.errors import HealingError
from lowrank.healing.training import Training, check_trainable
from lowrank.pipeline.healing import FEWEST, hundredths
from lowrank.pipeline.session import Session
from lowrank.results.parts import Refinement

STEPS = 200
"""Of each block. More of them gain more, and take longer: healing is for that."""
COPIES = 8
"""Bytes that training takes for each number of the dense model, at most: both models in float32."""


def refine(session: Session, small: Backend, plan: Plan) -> tuple[Refinement | None, list[str]]:
    """Fit each block of a compressed model to the dense block's outputs, in place, on its calibration data.

    The model is never worse on the held-out samples: it stays as it was if it would be.

    Args:
        session: of the dense model, with data.
        small: the compressed model, whose module changes.
        plan: that it follows.

    Returns:
        What came of it, None if it could not be done; and the reason, then.
    """
    calibration = session.calibration
    assert calibration is not None
    if (samples := calibration.provenance["samples"]) < FEWEST:
        return None, [f"blocks were not refined: {samples} samples are too few; give at least {FEWEST}"]
    if COPIES * session.dense.params > available_memory():
        return None, ["blocks were not refined: there is no memory for training beside both models"]
    try:
        check_trainable(session.dense)
        from lowrank.healing.distill import Samples
        from lowrank.healing.preparation import prepare

        feeds = calibration.fit
        apart = Samples(feeds[:: -(-len(feeds) // STEPS)], calibration.heldout)
        sized = plan.budget is not None and plan.budget.most_bytes is not None
        with session.clock.stage("refine"):
            fitting = prepare(calibration.backend, small, apart, Training(steps=STEPS), same_size=sized)
            for _ in session.track(hundredths(fitting.refine()), fitting.status, 100):
                pass
    except HealingError as error:
        return None, [f"blocks were not refined: {error}"]
    if not fitting.work.done:
        return None, ["blocks were not refined: none were found that can be run by themselves"]
    result = fitting.healed()
    return Refinement(before=result.before, after=result.after, steps=STEPS, kept=result.kept), []
