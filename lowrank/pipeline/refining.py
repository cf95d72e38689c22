"""Block refinement: each block of a compressed model is fitted to the dense block's outputs before it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.memory import available_memory
from lowrank.calibrate.data import Calibration
from lowrank.errors import HealingError, first_line
from lowrank.healing.training import Training, check_trainable
from lowrank.parallel import processes
from lowrank.pipeline.healing import FEWEST, hundredths, samples_of
from lowrank.pipeline.in_bits import in_bits
from lowrank.progress import Track, silent
from lowrank.results.parts import Refinement

if TYPE_CHECKING:
    from lowrank.backends.torch.module import ModuleBackend
    from lowrank.healing.grids import FormatOf, Grids

STEPS = 200
"""Of each block. More of them gain more, and take longer: healing is for that."""
COPIES, ROUNDED_COPIES = 8, 24
"""Bytes that training takes for each number of the dense model, about: both models in float32; and of rounded numbers
the exact ones, their gradients, and what the optimiser remembers."""


def refine(
    calibration: Calibration,
    small: Backend,
    same_size: bool = False,
    track: Track = silent,
    format_of: FormatOf | None = None,
) -> tuple[Refinement | None, list[str]]:
    """Fit each block of a compressed model to the dense block's outputs, in place, on calibration data.

    The model is never worse on the held-out samples: it stays as it was if it would be. Where matrices are rounded, it
    is never worse than the model that is only rounded.

    Args:
        calibration: of the dense model.
        small: the compressed model, whose module changes.
        same_size: its file may not grow: see `prepare`.
        track: shows progress.
        format_of: from the name of a matrix to the format that its file will have it in, if it has few bits. Those of
            blocks are rounded first and stay in their formats, so that blocks make up for what rounding does.

    Returns:
        What came of it, None if it could not be done; and the reason, then.
    """
    try:
        _check(calibration, COPIES if format_of is None else ROUNDED_COPIES)
        return _refined(calibration, small, same_size, track, format_of), []
    except HealingError as error:
        return None, [f"blocks were not refined: {error}"]


def _check(calibration: Calibration, copies: int) -> None:
    """Check that blocks can be trained, in so many bytes for each number.

    Raises:
        HealingError: with the reason if not.
    """
    samples = calibration.provenance["samples"]
    if samples < FEWEST:
        raise HealingError(f"{samples} samples are too few; give at least {FEWEST}")
    if processes()[1] > 1:
        raise HealingError("only one of several processes goes on after the calibration; heal the run with all of them")
    if copies * calibration.backend.params > available_memory():
        raise HealingError("there is no memory for training beside both models")
    check_trainable(calibration.backend)


def _refined(
    calibration: Calibration, small: Backend, same_size: bool, track: Track, format_of: FormatOf | None
) -> Refinement:
    from lowrank.backends.torch.module import ModuleBackend
    from lowrank.healing.preparation import prepare

    assert isinstance(small, ModuleBackend)
    feeds, training = calibration.fit, Training(steps=STEPS)
    samples = samples_of(calibration, feeds[:: -(-len(feeds) // STEPS)])
    places = dict(small.module.named_parameters())
    trained = {name: parameter.requires_grad for name, parameter in places.items()}
    grids = _grids(small, feeds[0], format_of)
    try:
        with in_bits(calibration, small, grids):
            try:
                fitting = prepare(calibration.backend, small, samples, training, same_size=same_size, grids=grids)
            except RuntimeError as error:
                raise HealingError(f"they cannot be run as they are trained ({first_line(error)})") from None
            try:
                for _ in track(hundredths(fitting.refine()), "refining blocks", 100):
                    pass
            except RuntimeError as error:
                # A layer that changes its inputs in place, say, can be run and not trained.
                fitting.keep_best()
                raise HealingError(f"they cannot be trained ({str(error).splitlines()[0]})") from None
            if not fitting.work.done:
                raise HealingError("none were found that can be run by themselves")
    finally:
        for name, parameter in places.items():
            parameter.requires_grad_(trained[name])
    result = fitting.healed()
    return Refinement(before=result.before, after=result.after, steps=STEPS, kept=result.kept)


def _grids(small: ModuleBackend, feed: Feed, format_of: FormatOf | None) -> Grids:
    """Of the matrices in blocks that will have few bits; none of a model that cannot be run. What is outside, such as a
    table of positions, may become something else in a graph."""
    from lowrank.healing.grids import grids_in
    from lowrank.healing.module_runner import block_paths

    if format_of is None or not isinstance(small.signature, Signature):
        return {}
    return grids_in(small.module, format_of, block_paths(small.module, small.signature, feed))
