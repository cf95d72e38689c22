"""A finished run healed: its model trained for some minutes to give what the dense one gives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from lowrank.artifacts import hash_json, staged, write_json
from lowrank.artifacts.lock import holding
from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed
from lowrank.calibrate.changed_sets import with_changes
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan
from lowrank.core.rounding.formats import FORMATS
from lowrank.edge.target import Target
from lowrank.errors import ArtifactError, ExportError, HealingError
from lowrank.evaluate.measure import timed
from lowrank.evaluate.tasks.benchmark import read_benchmark
from lowrank.healing.training import Training, check_healable
from lowrank.parallel import one_thread_each
from lowrank.pipeline.healing_graphs import as_modules, model_in, with_trained
from lowrank.pipeline.in_bits import grids_of_file, in_bits
from lowrank.pipeline.publish.adapters import folded, keep_adapter, write_adapters
from lowrank.pipeline.publish.model_card import write_card
from lowrank.pipeline.run.layout import (
    ADAPTER_FILES,
    ADAPTER_FOLDER,
    CHECKPOINT_FILE,
    MODEL_FOLDER,
    PAGE_FILE,
    REPORT_FILE,
    RESULTS,
    RUN,
    WITH_PAST_FILE,
    files_of,
)
from lowrank.pipeline.run.page import with_page
from lowrank.pipeline.run.read import check_source, read_run
from lowrank.pipeline.run.write import History, WriteOptions, write_and_measure
from lowrank.pipeline.session import Session, WorkOptions, open_session, read_calibration, read_training
from lowrank.pipeline.settings import NO_DATA, Settings
from lowrank.progress import Clock
from lowrank.results.parts import HealingResult
from lowrank.results.report import INT8_FILE, ONNX_FILE, Report

if TYPE_CHECKING:
    from lowrank.healing.adapter import Adapter
    from lowrank.healing.checkpoint import Checkpoint
    from lowrank.healing.distill import Samples
    from lowrank.healing.grids import Grids
    from lowrank.healing.phases import Healing

FEWEST = 10
"""Samples: fewer cannot be split into those to learn from and those to be judged by."""


@one_thread_each()
@holding("run")
def heal(
    run: str | Path = RUN,
    training: Training | float | None = None,
    *,
    model: object = None,
    tasks: Sequence[str] = (),
    max_drop: float | None = None,
    resume: bool = False,
    latency: bool = True,
    **options: Unpack[WorkOptions],
) -> Report:
    """Train a compressed model to imitate the dense one, on unlabelled data.

    First block by block, then as a whole, on hidden states and on the output in its own measure. The learning rate is
    found on held-out samples, and what they do not find better than before is discarded.

    Args:
        run: a finished run, whose results are replaced. An adapter that is not folded leaves the model as it is, and
            is written beside it: as PEFT reads it, as ONNX Runtime does, and with a graph for it.
        training: how, or how many minutes.
        model: the dense module, for runs that were made from one in memory.
        tasks: what the healed model is measured on beside fidelity; see `read_tasks`.
        max_drop: how much each of them may lose.
        resume: go on with a healing that was interrupted.
        latency: time both models again.
        options: `settings`, other data than that of the run's analysis; `opening`, how to build the dense model if its
            file does not say; `track`, which shows progress.

    Raises:
        HealingError: if there is nothing to train or nothing to train on, or an adapter would be lost.
        ArtifactError: if the run is not complete.
        PlanMismatch: if the run's model does not follow its plan, or the original has changed.

    Example:
        report = lowrank.heal("run", 10)
    """
    from lowrank.healing.checkpoint import Checkpoint

    training = training if isinstance(training, Training) else Training(minutes=training or Training.minutes)
    folder = Path(run).expanduser()
    analysis, plan, report = read_run(folder)
    if report is None:
        raise ArtifactError(f"{folder / REPORT_FILE} is missing; `lowrank evaluate -o {folder}` writes it anew")
    opened = _opened(model, folder, analysis, report, training, **options)
    benchmark = read_benchmark(tasks, opened.dense, opened.judges)
    dense = opened.dense
    small = model_in(folder, dense, analysis, plan, dict)
    asked = {**asdict(training), "data": dict(_data_of(opened).provenance)}
    grids, remarks = _grids(folder, small, plan, report, analysis) if training.adapter is None else ({}, [])
    formats = {name: str(grid) for name, grid in sorted(grids.items())}
    path, key = folder / CHECKPOINT_FILE, hash_json([asked, plan.to_json(), *([formats] if formats else [])])
    with opened.clock.stage("heal"):
        healing = _train(opened, small, plan, training, Checkpoint(path, key, resume), grids)
    entry = _entry(asked, healing)
    if not healing.task.workers.is_first:
        # Of several processes one writes.
        return report
    if entry.kept:
        small = with_trained(small, healing.target, analysis, plan)
    output = WriteOptions(
        target=report.target,
        with_past=(folder / WITH_PAST_FILE).exists(),
        int8=(folder / INT8_FILE).exists(),
        latency=latency,
        benchmark=benchmark,
        max_drop=max_drop,
    )
    beside = training.keeps_adapter
    if healing.adapter is not None and not beside and entry.kept:
        feeds = _data_of(opened).fit if training.fold == "rank" else None
        merged, followed, loss = folded(healing, dense, small, feeds, plan, analysis)
        after, before = loss if loss < math.inf else None, entry.before
        entry = replace(entry, unfolded=entry.after, after=after, kept=before is not None and loss < before)
        if entry.kept:
            small, plan = merged, followed
    refit, healings = bool(report.provenance.refit), [*report.healing, entry]
    history = History(
        refit=refit,
        refinement=report.refinement,
        healing=healings,
        cut=report.cut,
        remarks=remarks,
        before=report,
    )
    if beside or not entry.kept:
        report = _beside(opened, small, plan, history, output, healing.adapter if entry.kept else None)
    else:
        report = _in_place_of(opened, small, plan, history, output)
    path.unlink(missing_ok=True)
    return report


def _entry(asked: Mapping[str, Any], healing: Healing) -> HealingResult:
    """What came of a healing, for the report."""
    healed = healing.healed()
    unit = "minutes" if asked["steps"] is None else "steps"
    # Dense tables are rounded, and not trained.
    in_bits = len((healing.grids or {}).keys() & healing.task.parameters.keys()) or None
    return HealingResult(**{**asked, **asdict(healed)}, kept=healed.kept, unit=unit, in_bits=in_bits)


def _opened(
    model: object, folder: Path, analysis: Analysis, report: Report, training: Training, **options: Unpack[WorkOptions]
) -> Session:
    """The dense model of a run with its data, if it can be trained and no adapter would be lost."""

    def check(dense: Backend) -> None:
        check_healable(dense, training, exact=report.target == Target())
        check_source(analysis, dense, folder)
        _check_adapter(folder, report, training)

    options["settings"] = options.get("settings") or Settings.from_json(analysis.settings)
    # The clock goes on from all that has made the model.
    clock = Clock(dict(report.seconds))
    session = open_session(model, folder, stored=analysis, check=check, read=_data, clock=clock, **options)
    return replace(session, current=analysis)


def _in_place_of(opened: Session, small: Backend, plan: Plan, history: History, output: WriteOptions) -> Report:
    """Write a healed model to its run, in the place of what it was."""
    assert opened.run is not None and history.before is not None
    folder = opened.run
    with staged(folder, owned=RESULTS) as stage:
        lora = folder / ADAPTER_FOLDER
        problems = keep_adapter(small, lora, stage) if lora.exists() and not own_adapter(history.before) else ()
        return write_and_measure(opened, small, plan, stage, output, replace(history, problems=problems))


def _beside(
    opened: Session, small: Backend, plan: Plan, history: History, output: WriteOptions, adapter: Adapter | None
) -> Report:
    """Leave the model of a run as it is, and write what was trained beside it, if anything was."""
    assert opened.run is not None and history.before is not None
    folder, report, problems = opened.run, history.before, list[str]()
    with staged(folder, owned=(PAGE_FILE, *(ADAPTER_FILES if adapter is not None else ()))) as stage:
        if adapter is not None:
            with opened.clock.stage("adapter"):
                residuals = adapter.residuals()
                problems += write_adapters(small, adapter.peft, residuals, adapter.shapes, stage)
        if output.latency and report.latency is None:
            with opened.clock.stage("latency"):
                report = _timed(report, opened, folder, problems)
        *before, entry = history.healing
        entry = replace(entry, problems=[*entry.problems, *problems])
        files = {**report.files, **files_of(stage)}
        report = replace(report, healing=[*before, entry], files=files, seconds=opened.clock.seconds)
        report = with_page(stage, folder, opened.analysis, plan, report)
        write_json(stage / REPORT_FILE, "report", report.to_json())
    write_card(folder / MODEL_FOLDER, report)
    return report


def _timed(report: Report, opened: Session, folder: Path, problems: list[str]) -> Report:
    """The report of a model that stays as it is, with times."""
    if report.onnx is None or not (folder / ONNX_FILE).exists():
        return report
    try:
        return timed(report, opened.original, folder / ONNX_FILE)
    except ExportError as error:
        problems.append(str(error))
        return report


def own_adapter(report: Report | None) -> bool:
    """Whether the adapter beside a model was trained for it as it is."""
    entries = report.healing if report else []
    return any(entry.adapter and entry.fold == "no" and entry.kept for entry in entries)


def _check_adapter(folder: Path, report: Report, training: Training) -> None:
    """Check that healing loses no adapter.

    Raises:
        HealingError: if one would be, or would no longer be for this model.
    """
    if not (folder / ADAPTER_FOLDER).exists():
        return
    own, changes = own_adapter(report), not training.keeps_adapter
    if own and changes:
        raise HealingError(
            f"{folder / ADAPTER_FOLDER} fits the current model alone, which healing would change: heal a copy of "
            "the run, or delete the adapter first"
        )
    if not own and not changes:
        raise HealingError(
            f"{folder / ADAPTER_FOLDER} is the LoRA that was kept, and a trained adapter would take its place: heal "
            "without --adapter, or compress again without --keep-lora"
        )


def _train(
    opened: Session, small: Backend, plan: Plan, training: Training, checkpoint: Checkpoint, grids: Grids
) -> Healing:
    """Train the module of `small`, or an adapter for it."""
    from lowrank.backends.torch.module import ModuleBackend
    from lowrank.healing.preparation import prepare

    calibration, settings = _data_of(opened), opened.settings
    samples = samples_of(calibration, read_training(calibration, settings))

    def run() -> Healing:
        sized = plan.is_sized
        models = as_modules(calibration.backend, small, samples.fit[0])
        healing = prepare(*models, samples, training, checkpoint, same_size=sized, grids=grids)
        for _ in opened.track(hundredths(healing.run()), healing.status, 100):
            pass
        return healing

    if not grids:
        return run()
    assert isinstance(small, ModuleBackend)
    with in_bits(calibration, small, grids):
        return run()


def _grids(folder: Path, small: Backend, plan: Plan, report: Report, analysis: Analysis) -> tuple[Grids, list[str]]:
    """Of all parameters that the run's graph holds in few bits, and remarks."""
    from lowrank.backends.torch.module import ModuleBackend

    if report.target.dtype not in (*FORMATS, "mixed") or report.onnx is None or not isinstance(small, ModuleBackend):
        return {}, []
    return grids_of_file(folder / ONNX_FILE, small, report.target.dtype, plan, analysis)


def samples_of(calibration: Calibration, fit: Sequence[Feed]) -> Samples:
    """Batches to learn from, and the held-out ones; with plain changes, where all are of one kind: what learns from
    these alone forgets the others."""
    from lowrank.healing.distill import Samples

    heldout = calibration.heldout
    if calibration.is_own_alone:
        fit, heldout = (with_changes(calibration.backend, fold) for fold in (fit, heldout))
    return Samples(fit, heldout)


def hundredths(shares: Iterator[float]) -> Iterator[int]:
    """One item for each hundredth that is done."""
    done = 0
    for share in shares:
        while done < int(100 * share):
            done += 1
            yield done


def _data_of(opened: Session) -> Calibration:
    assert opened.calibration is not None
    return opened.calibration


def _data(dense: Backend, settings: Settings) -> Calibration:
    return check_data(None if settings.calib == NO_DATA else read_calibration(dense, settings), settings)


def check_data(calibration: Calibration | None, settings: Settings) -> Calibration:
    """Check that there are data to learn from, and enough of them.

    Raises:
        HealingError: if there are not.
    """
    if settings.calib == NO_DATA:
        raise HealingError("healing learns from data, and the run was made without any; give --calib FILE")
    if calibration is None:
        raise HealingError(
            "there is no data that the model can be run on: it comes without a tokenizer, or does not read text; give "
            "its inputs with --calib inputs.npz, or --tokenizer"
        )
    check_samples(calibration)
    return calibration


def check_samples(calibration: Calibration) -> None:
    """Check that there are enough samples to train on.

    Raises:
        HealingError: if there are not.
    """
    if calibration.provenance["samples"] < FEWEST:
        raise HealingError(
            f"{calibration.provenance['samples']} samples are too few to be split into training and held-out samples; "
            f"give at least {FEWEST}, better some thousands"
        )
