"""Block refinement: each block of a compressed model is fitted to the dense block's outputs before it is written."""

from __future__ import annotations

from collections.abc import Callable

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Signature, spread
from lowrank.backends.memory import available_memory
from lowrank.calibrate.data import Calibration
from lowrank.core.rounding.formats import Format
from lowrank.errors import HealingError
from lowrank.healing.training import Training, check_trainable
from lowrank.parallel import processes
from lowrank.pipeline.healing import FEWEST, hundredths, samples_of
from lowrank.progress import Track, silent
from lowrank.results.parts import Refinement

STEPS = 200
"""Of each block. More of them gain more, and take longer: healing is for that."""
TOKENS = 16384
"""On which matrices are rounded."""
COPIES = 8
"""Bytes that training takes for each number of the dense model, about: both models in float32."""


def refine(
    calibration: Calibration,
    small: Backend,
    same_size: bool = False,
    track: Track = silent,
    format_of: Callable[[str], Format | None] = lambda _: None,
) -> tuple[Refinement | None, list[str]]:
    """Fit each block of a compressed model to the dense block's outputs, in place, on calibration data.

    The model is never worse on the held-out samples: it stays as it was if it would be.

    Args:
        calibration: of the dense model.
        small: the compressed model, whose module changes.
        same_size: its file may not grow: see `prepare`.
        track: shows progress.
        format_of: from the name of a matrix to the format that its file will have it in, if it has few bits. Such
            matrices are rounded first and stay in their formats, so that blocks make up for what rounding does.

    Returns:
        What came of it, None if it could not be done; and the reason, then.
    """
    try:
        _check(calibration)
        return _refined(calibration, small, same_size, track, format_of), []
    except HealingError as error:
        return None, [f"blocks were not refined: {error}"]


def _check(calibration: Calibration) -> None:
    """Check that blocks can be trained.

    Raises:
        HealingError: with the reason if not.
    """
    samples = calibration.provenance["samples"]
    if samples < FEWEST:
        raise HealingError(f"{samples} samples are too few; give at least {FEWEST}")
    if processes()[1] > 1:
        raise HealingError("only one of several processes goes on after the calibration; heal the run with all of them")
    if COPIES * calibration.backend.params > available_memory():
        raise HealingError("there is no memory for training beside both models")
    check_trainable(calibration.backend)


def _refined(
    calibration: Calibration,
    small: Backend,
    same_size: bool,
    track: Track,
    format_of: Callable[[str], Format | None],
) -> Refinement:
    from lowrank.backends.torch.module import ModuleBackend
    from lowrank.healing.preparation import prepare
    from lowrank.healing.rounding import formats_in, round_

    assert isinstance(small, ModuleBackend)
    feeds = calibration.fit
    samples = samples_of(calibration, feeds[:: -(-len(feeds) // STEPS)])
    trained = {name: parameter.requires_grad for name, parameter in small.module.named_parameters()}
    formats = formats_in(small.module, format_of)
    if formats:
        assert isinstance(small.signature, Signature)
        round_(small.module, small.signature, formats, spread(feeds, TOKENS))
    try:
        training = Training(steps=STEPS)
        fitting = prepare(calibration.backend, small, samples, training, same_size=same_size, formats=formats)
        try:
            for _ in track(hundredths(fitting.refine()), "refining blocks", 100):
                pass
        except RuntimeError as error:
            # A layer that changes its inputs in place, say, can be run and not trained.
            fitting.keep_best()
            raise HealingError(f"they cannot be trained ({str(error).splitlines()[0]})") from None
    finally:
        for name, parameter in small.module.named_parameters():
            parameter.requires_grad_(trained[name])
    if not fitting.work.done:
        raise HealingError("none were found that can be run by themselves")
    result = fitting.healed()
    return Refinement(before=result.before, after=result.after, steps=STEPS, kept=result.kept)
