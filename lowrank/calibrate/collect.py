"""Grams from forward passes: nothing is kept of the activations but their moments."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowrank.backends.inputs import Feed, elements
from lowrank.backends.moment_sums import Observe, sum_moments
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Folds
from lowrank.core.truncation.gram import Gram
from lowrank.core.weight import Weight
from lowrank.errors import CalibrationError, first_line
from lowrank.parallel import processes
from lowrank.progress import Track

if TYPE_CHECKING:
    from lowrank.backends.torch.workers import Workers


def collect_grams(
    calibration: Calibration, weights: Sequence[Weight], track: Track, coupled: Collection[str] = ()
) -> dict[str, Folds]:
    """The second moments of the inputs (or outputs) of each weight's layers, by weight name, for the two folds.

    Weights that are wide (fewer rows than columns) get the Gram of their outputs, the others that of their inputs:
    the smaller of the two always decides the truncation. Weights in `coupled` get that of their inputs. Where a batch
    has an attention mask, the rows that it masks are left out.

    Of several processes (`accelerate launch -m lowrank analyze ...`) each runs its share of the batches, on a GPU of
    its own if there are any; their moments are added up, and all but the first process end here.

    Raises:
        CalibrationError: if the model cannot be run on the data.
        SystemExit: in every process of several but the first, which goes on with the sums of all.
    """
    rank, count = processes()
    workers = _workers() if count > 1 else None
    fit, heldout = (
        _run(calibration, weights, coupled, track(batches, label, len(batches)) if batches else (), workers)
        for batches, label in (
            # The largest first: threads that work on neighbours then wait little for each other.
            (sorted(fold[rank::count], key=elements, reverse=True), label)
            for fold, label in ((calibration.fit, "calibrating"), (calibration.heldout, "held-out fold"))
        )
    )
    if rank > 0:
        raise SystemExit(0)
    return _share({w.name: Folds(fit[w.name], heldout[w.name]) for w in weights})


def _run(
    calibration: Calibration,
    weights: Sequence[Weight],
    coupled: Collection[str],
    batches: Iterable[Feed],
    workers: Workers | None,
) -> dict[str, Gram]:
    grams = {w.name: Gram.zeros(w, "input" if w.name in coupled else None) for w in weights}
    backend, device = calibration.backend, workers.device if workers else "cpu"
    with backend.watching({name: gram.side for name, gram in grams.items()}, device) as watch:

        def run(feed: Feed, observe: Observe) -> None:
            try:
                watch(feed, observe)
            except Exception as error:
                shapes = ", ".join(f"{name} {array.shape}" for name, array in feed.items())
                raise CalibrationError(
                    f"the model cannot be run on the calibration data ({shapes}): {first_line(error)}"
                ) from error

        grams = sum_moments(grams, batches, run, backend.jobs if device == "cpu" else 1)
    if workers is not None:
        grams = {name: _summed(gram, workers).mirrored() for name, gram in grams.items()}
    return grams


def _workers() -> Workers:
    import torch

    from lowrank.backends.torch.workers import Workers

    return Workers("cuda" if torch.cuda.is_available() else "cpu")


def _summed(gram: Gram, workers: Workers) -> Gram:
    """The sum of the Grams of all processes."""
    facts = workers.summed(np.array([gram.tokens, gram.energy, gram.nonfinite], np.float64))
    total = None if gram.total is None else workers.summed(gram.total)
    return Gram(gram.side, workers.summed(gram.moment), round(facts[0]), float(facts[1]), round(facts[2]), total)


def _share(folds: dict[str, Folds]) -> dict[str, Folds]:
    """One object for equal moments, so that they are kept and stored once."""
    by_hash: dict[str, Folds] = {}
    return {name: by_hash.setdefault(hash_of(f), f) for name, f in folds.items()}


def hash_of(folds: Folds) -> str:
    """A hash of moments, equal for equal ones."""
    digest = hashlib.sha256()
    for gram in (folds.fit, folds.heldout):
        digest.update(repr((gram.side, gram.tokens, gram.energy)).encode())
        digest.update(gram.moment.tobytes())
    return digest.hexdigest()
