"""Grams from forward passes: nothing is kept of the activations but their moments."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

from lowrank.backends.inputs import Feed
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Folds
from lowrank.core.gram import Gram
from lowrank.core.weight import Weight
from lowrank.errors import CalibrationError, first_line
from lowrank.progress import Track


def collect_grams(
    calibration: Calibration, weights: Sequence[Weight], track: Track, bonded: Collection[str] = ()
) -> dict[str, Folds]:
    """The second moments of what each weight's layers see (or give), by weight name, for the two folds.

    Weights that are wide (fewer rows than columns) get the Gram of their outputs, the others that of their inputs:
    the smaller of the two always decides the truncation. What is `bonded` gets that of its inputs. Where a batch has
    an attention mask, the rows that it masks are left out.

    Raises:
        CalibrationError: if the model cannot be run on the data.
    """
    fit = _run(calibration, weights, bonded, track(calibration.fit, "calibrating", len(calibration.fit)))
    held = _run(calibration, weights, bonded, track(calibration.heldout, "held-out fold", len(calibration.heldout)))
    return _share({w.name: Folds(fit[w.name], held[w.name]) for w in weights})


def _run(
    calibration: Calibration, weights: Sequence[Weight], bonded: Collection[str], batches: Iterable[Feed]
) -> dict[str, Gram]:
    grams = {w.name: Gram.zeros(w, "input" if w.name in bonded else None) for w in weights}

    def observe(name: str, gram: Gram) -> None:
        grams[name] += gram

    with calibration.backend.watching({name: gram.side for name, gram in grams.items()}, observe) as run:
        for batch in batches:
            try:
                run(batch)
            except Exception as error:
                shapes = ", ".join(f"{name} {array.shape}" for name, array in batch.items())
                raise CalibrationError(
                    f"the model cannot be run on the calibration data ({shapes}): {first_line(error)}"
                ) from error
    return {name: gram.mirrored() for name, gram in grams.items()}


def _share(folds: dict[str, Folds]) -> dict[str, Folds]:
    """One object for equal moments, so that they are kept and stored once."""
    kept: dict[str, Folds] = {}
    return {name: kept.setdefault(_key(f), f) for name, f in folds.items()}


def _key(folds: Folds) -> str:
    digest = hashlib.sha256()
    for gram in (folds.fit, folds.heldout):
        digest.update(repr((gram.side, gram.tokens, gram.energy)).encode())
        digest.update(gram.moment.tobytes())
    return digest.hexdigest()
