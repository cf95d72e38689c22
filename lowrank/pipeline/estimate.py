"""What work will take, known before it begins: memory, disk and time."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowrank.artifacts import load_analysis
from lowrank.artifacts.directions import StoredDirections, directions_bytes, kept_of
from lowrank.artifacts.journal import unfinished_bytes
from lowrank.backends import IN_MEMORY, Backend, Opening, is_streamed, open_model
from lowrank.backends.memory import used_memory
from lowrank.core.analysis import Analysis
from lowrank.core.cost import item_bytes
from lowrank.core.linalg.eigen import eigh_descending
from lowrank.core.weight import Weight
from lowrank.errors import ResourceError
from lowrank.pipeline.execution import Execution, working_bytes
from lowrank.pipeline.run.read import source_of
from lowrank.pipeline.session import takes_data
from lowrank.pipeline.settings import Settings
from lowrank.pipeline.targets import targeted
from lowrank.results.forecast import Estimate

PROBE = 1024
"""The size of the matrix that is decomposed to learn how fast this machine is."""
VALUES = 0.4
"""Of the time of eigenvectors: what eigenvalues alone take. Measured with `tools/bench_scale.py`, as are the others."""
CURVES = 48
"""Bytes for each rank of a weight: its spectra and its curve, twice while they are written."""
PRODUCT = 0.1
"""Of the same: the product of a square matrix with its transpose."""
BLOCK = re.compile(r".*?\.\d+\.")
"""The block that a weight is in: the beginning of its name, to its first number."""


def check_room(needed: Estimate, run: Path) -> None:
    """Refuse work that a run has no room for.

    Raises:
        ResourceError: if there is too little memory or disk.
    """
    if needed.disk > needed.disk_free:
        raise ResourceError(
            f"{run} needs about {_gigabytes(needed.disk)}, and its disk has {_gigabytes(needed.disk_free)} left; "
            f"make room, or choose another folder with -o{_or_without(needed.directions)}"
        )
    if needed.streamed and needed.memory > needed.memory_left + used_memory():
        raise ResourceError(
            f"the work needs about {needed.memory / 1e9:.1f} GB of memory, and {needed.memory_left / 1e9:.1f} GB are "
            "left; --stream reads a Hugging Face folder weight by weight"
        )


def foresee(
    model: object,
    keep: float,
    output: str | Path,
    settings: Settings | None = None,
    opening: Opening | None = None,
    execution: Execution | None = None,
) -> Estimate:
    """What `analyze` and `compress` will take; nothing is written.

    Args:
        model: as for `analyze`; None for that of the run.
        keep: the share of the targeted weights that is kept.
        output: the run folder.
        settings: which weights.
        opening: how to build the model if its file does not say.
        execution: how the work is to be done.

    Raises:
        LowRankError: if it cannot be done.
    """
    execution, run = execution or Execution(), Path(output).expanduser()
    stored = load_analysis(run) if model is None else None
    if stored is not None:
        model, opening = source_of(stored, run, opening)
        settings = settings or Settings.from_json(stored.settings)
    backend = open_model(model, opening or Opening(), execution.memory, execution.streamed)
    settings = settings or Settings()
    weights, _ = targeted(backend, settings)
    needed = estimate(
        backend,
        weights,
        keep,
        run,
        execution,
        calibrated=takes_data(backend, settings),
        known=stored,
    )
    check_room(needed, run)
    return needed


def estimate(
    backend: Backend,
    weights: Sequence[Weight],
    keep: float | None,
    run: Path,
    execution: Execution,
    *,
    calibrated: bool,
    known: Analysis | None = None,
    timed: bool = True,
) -> Estimate:
    """What analysing and compressing some weights of a model will take.

    Args:
        backend: the model, opened.
        weights: that are targeted.
        keep: the share of them that is kept; None for the analysis alone.
        run: where results go.
        execution: how it is done.
        calibrated: whether there is data.
        known: the analysis, if it is there already.
        timed: decompose a small matrix to learn how long it takes; otherwise the seconds are zero.

    Raises:
        ResourceError: if there is not enough memory for one weight.
    """
    streamed, jobs = is_streamed(backend), execution.jobs(weights, calibrated)
    largest = max(working_bytes(weight, calibrated) for weight in weights)
    matrices = max(jobs * largest, _block_bytes(weights) if streamed and calibrated and known is None else 0)
    targeted = sum(weight.params * item_bytes(weight.dtype) for weight in weights)
    written = sum(min(weight.shape) * CURVES for weight in weights)
    if calibrated and (streamed or not isinstance(backend.signature, str)):
        # Moments of two folds, as lower triangles.
        written += sum(min(weight.shape) ** 2 * weight.stack * 8 for weight in weights)
    kept = keeps_directions(backend, execution, calibrated)
    # What lies there already takes no more.
    directions = sum(map(directions_bytes, weights)) if kept and known is None else 0
    written += directions
    if known is not None:
        kept = isinstance(known.leading, StoredDirections) and known.leading.folder.exists()
    if keep is not None:
        compressed = backend.nbytes - (1 - keep) * targeted
        # A model that is run is written as a graph in float32, too.
        written += compressed if streamed else compressed * 2
    unit = _seconds_per_unit() if timed else 0.0
    cubes, products = (sum(w.stack * min(w.shape) ** 2 * size(w.shape) for w in weights) for size in (min, max))
    again = sum(
        w.stack * min(w.shape) ** 3
        for w in weights
        if not kept or (keep is not None and _rank_at(keep, w) > kept_of(w))
    )
    widths = np.mean([0.5 if item_bytes(w.dtype) <= 2 else 1.0 for w in weights]) if streamed else 1.0
    return Estimate(
        streamed=streamed,
        weights=len(weights),
        jobs=jobs,
        memory=used_memory() + (matrices if streamed else max(IN_MEMORY * backend.params, matrices)),
        memory_left=execution.left(),
        disk=int(written),
        directions=directions,
        # Unfinished work is gone on with, or makes room.
        disk_free=shutil.disk_usage(_existing(run)).free + unfinished_bytes(run),
        analyze_seconds=float(widths * unit * ((1 if kept else VALUES) * cubes + PRODUCT * products) / jobs),
        compress_seconds=float(widths * unit * (again + 3 * PRODUCT * products) / jobs),
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _or_without(directions: int) -> str:
    return f"; --no-directions spares {_gigabytes(directions)} and takes longer" if directions else ""


def keeps_directions(backend: Backend, execution: Execution, calibrated: bool) -> bool:
    """Whether an analysis keeps leading directions for the compression; see `Execution.keep_directions`."""
    return execution.keep_directions and is_streamed(backend) and not calibrated


def _block_bytes(weights: Sequence[Weight]) -> int:
    """What the largest block takes while it is calibrated: its weights in float32, and moments of two folds, of the
    smaller side of each weight."""
    sizes: Counter[str] = Counter()
    for weight in weights:
        number = BLOCK.match(weight.name)
        if number is not None:
            sizes[number.group()] += weight.params * 4 + weight.stack * min(weight.shape) ** 2 * 2 * 8
    return max(sizes.values(), default=0)


def _rank_at(keep: float, weight: Weight) -> float:
    """The rank at which pivoted factors of a weight keep such a share of its numbers."""
    around, area = sum(weight.shape), weight.rows * weight.cols
    return (around - (around**2 - 4 * min(keep, 1.0) * area) ** 0.5) / 2


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    path = path.expanduser().resolve()
    return path if path.exists() else _existing(path.parent)


def _seconds_per_unit() -> float:
    """Of eigenvectors, by the cube of their number, on this machine as it is now."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((PROBE, PROBE))
    start = time.perf_counter()
    eigh_descending(factor @ factor.T)
    return (time.perf_counter() - start) / PROBE**3
