"""Grams of a model whose weights do not fit together: one block after the other, hidden states on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lowrank.artifacts.files import make_folder
from lowrank.artifacts.grams import GRAMS_FOLDER, StoredGrams, store_grams
from lowrank.artifacts.journal import FACTS, Journal
from lowrank.backends.checkpoint.backend import CheckpointBackend
from lowrank.backends.checkpoint.block_runner import BlockRunner
from lowrank.backends.memory import available_memory, batches_at_once
from lowrank.backends.moment_sums import sum_moments
from lowrank.calibrate.collect import hash_of
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Folds
from lowrank.core.truncation.gram import Gram
from lowrank.core.weight import Weight
from lowrank.errors import CalibrationError
from lowrank.progress import Track

HIDDEN_FOLDER = "hidden"


def blockwise_grams(
    calibration: Calibration,
    weights: Sequence[Weight],
    track: Track,
    journal: Journal,
    left: Callable[[], int] = available_memory,
) -> StoredGrams:
    """The second moments of the inputs, or the outputs, of the weights in blocks; those outside of blocks have none.

    Args:
        calibration: data for a checkpoint.
        weights: which.
        track: shows progress.
        journal: where hidden states wait and Grams are kept; a run that was killed goes on at its block.
        left: bytes that moments and batches may take.

    Raises:
        CalibrationError: if the model's blocks cannot be run one by one, or there is no run folder.
    """
    backend = calibration.backend
    assert isinstance(backend, CheckpointBackend)
    if journal.folder is None:
        raise CalibrationError("moments of a streamed model are kept on disk: give a run folder with -o")
    folder = make_folder(journal.folder / GRAMS_FOLDER)
    blocks = BlockRunner(backend, [*calibration.fit, *calibration.heldout], journal.folder / HIDDEN_FOLDER)
    count = len(blocks.paths)
    # The last block whose input is on disk; all before it are done.
    start = max((i for i in range(count + 1) if blocks.has(i)), default=0)
    blocks.prepare(afresh=start == 0)
    files: dict[str, str] = {}
    for index in track(range(count), "calibrating block by block", count):
        make = partial(_of_block, blocks, index, weights, len(calibration.fit), folder, left)
        files |= journal.kept(f"grams of block {index}", FACTS, make)
        blocks.forget(index)
    return StoredGrams(folder, files)


def _of_block(
    blocks: BlockRunner, index: int, weights: Sequence[Weight], fits: int, folder: Path, left: Callable[[], int]
) -> dict[str, str]:
    """The file of each weight's Grams; none for a weight that nothing reached."""
    own = blocks.weights_of(index, weights)
    folds = _folds_of(blocks, index, own, fits, left)
    files: dict[str, str] = {}
    by_hash: dict[str, str] = {}
    for weight in own:
        grams = Folds(*(fold[weight.name] for fold in folds))
        if not grams.fit.informs:
            continue
        key = hash_of(grams)
        if key not in by_hash:
            by_hash[key] = store_grams(folder, weight.name, grams)
        files[weight.name] = by_hash[key]
    return files


def _folds_of(
    blocks: BlockRunner, index: int, own: Sequence[Weight], fits: int, left: Callable[[], int]
) -> list[dict[str, Gram]]:
    """The sums of both folds, of as many batches at once as there is memory for beside them."""
    zeros = [{weight.name: Gram.zeros(weight) for weight in own} for _ in range(2)]
    sums = sum(gram.moment.nbytes for each in zeros for gram in each.values())
    widest = max((max(weight.shape) for weight in own), default=1)
    jobs = batches_at_once(widest, left() - sums) if blocks.copies else 1
    parts = range(fits), range(fits, len(blocks.feeds))
    with blocks.running(index, own, {name: gram.side for name, gram in zeros[0].items()}, jobs) as run:
        return [sum_moments(each, part, run, jobs) for each, part in zip(zeros, parts, strict=True)]
