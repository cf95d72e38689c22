"""A finished run healed: its model trained for some minutes to give what the dense one gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.artifacts import hash_json, load_analysis, read_json, staged, write_json
from lowrank.backends import Opening, open_model
from lowrank.backends.base import Backend
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan
from lowrank.edge import WITH_PAST_FILE
from lowrank.errors import HealingError
from lowrank.evaluate.report import Report
from lowrank.pipeline.analyzing import read_calibration
from lowrank.pipeline.run import (
    PLAN_FILE,
    REPORT_FILE,
    RESULTS,
    RUN,
    check_plan,
    check_source,
    source_of,
    write_and_measure,
)
from lowrank.pipeline.settings import NO_DATA, Settings
from lowrank.progress import Clock, Track, silent

if TYPE_CHECKING:
    from lowrank.calibrate import Calibration
    from lowrank.healing import Healed

FEWEST = 10
"""Samples: fewer cannot be split into those to learn from and those to be judged by."""


def heal(
    run: str | Path = RUN,
    minutes: float = 10.0,
    *,
    steps: int | None = None,
    model: object = None,
    settings: Settings | None = None,
    seed: int = 0,
    resume: bool = False,
    device: str = "cpu",
    opening: Opening | None = None,
    latency: bool = True,
    with_past: bool | None = None,
    track: Track = silent,
) -> Report:
    """Train a compressed model to imitate the dense one, on unlabelled data.

    First block by block, then as a whole, on hidden states and on the output in its own measure. The learning rate is
    found on held-out samples, and what they do not find better than before is discarded.

    Args:
        run: a finished run; `model/`, `model.onnx` and `report.json` in it are replaced.
        minutes: how long, all trials included.
        steps: so many steps instead; then the same seed gives the same model.
        model: the dense module, for runs that were made from one in memory.
        settings: other data than that of the run's analysis.
        seed: of the order of the samples.
        resume: go on with a healing that was interrupted.
        device: `cpu`, `cuda` or `cuda:1`.
        opening: how to build the dense model if its file does not say.
        latency: time both models again.
        with_past: write `model_with_past.onnx` too; by default if the run has one.
        track: shows progress.

    Raises:
        HealingError: if there is nothing to train or nothing to train on.
        PlanMismatch: if the run's model does not follow its plan, or the original has changed.

    Example:
        report = lowrank.heal("run", minutes=10)
    """
    from lowrank.healing import CHECKPOINT_FILE

    folder, clock = Path(run).expanduser(), Clock()
    analysis = load_analysis(folder)
    content = read_json(folder / PLAN_FILE, "plan")
    plan = Plan.from_json(content, analysis, Budget.from_json(content.get("budget")))
    check_plan(folder, plan, analysis)
    if model is None:
        model, opening = source_of(analysis, folder, opening)
    dense = open_model(model, opening or Opening())
    check_source(analysis, dense, folder)
    settings = settings or Settings.from_json(analysis.settings)
    with clock.stage("read data"):
        calibration = _data(dense, settings)
    dense = calibration.backend
    small = dense.saved_in(folder, dict)
    asked = {"minutes": minutes, "steps": steps, "seed": seed, "device": device, "data": dict(calibration.provenance)}
    path = folder / CHECKPOINT_FILE
    with_past = (folder / WITH_PAST_FILE).exists() if with_past is None else with_past
    with clock.stage("heal"):
        healed = _train(calibration, small, settings, asked, path, hash_json([asked, plan.to_json()]), resume, track)
    entry = {**asked, **asdict(healed), "kept": healed.kept}
    problems = entry.pop("problems")
    report = _known(folder)
    entries = [*(report.healing if report else ()), entry]
    if healed.kept or report is None:
        with staged(folder, owned=RESULTS) as stage:
            report = write_and_measure(
                dense, small, analysis, plan, stage, calibration, latency, with_past, track, clock, entries
            )
            report = replace(report, problems=[*report.problems, *problems])
            write_json(stage / REPORT_FILE, "report", report.to_json())
    else:
        report = replace(report, problems=problems, healing=entries)
        write_json(folder / REPORT_FILE, "report", report.to_json())
    path.unlink(missing_ok=True)
    return report


def _train(
    calibration: Calibration,
    small: Backend,
    settings: Settings,
    asked: Mapping[str, Any],
    path: Path,
    key: str,
    resume: bool,
    track: Track,
) -> Healed:
    """Train the module of `small`; it is as it was if that brings nothing."""
    from lowrank.calibrate import training_batches
    from lowrank.healing import Work, start

    text = Path(settings.calib).expanduser() if settings.calib else None
    fit = training_batches(calibration, text, settings.column)
    work = Work(60 * asked["minutes"], asked["steps"])
    healing = start(
        calibration.backend,
        small,
        fit,
        calibration.heldout,
        work,
        seed=asked["seed"],
        device=asked["device"],
        path=path,
        key=key,
        resume=resume,
    )
    for _ in track(_hundredths(healing.run()), healing.told, 100):
        pass
    return healing.healed()


def _hundredths(shares: Iterator[float]) -> Iterator[int]:
    """One item for each hundredth that is done."""
    told = 0
    for share in shares:
        while told < int(100 * share):
            told += 1
            yield told


def _data(dense: Backend, settings: Settings) -> Calibration:
    if settings.calib == NO_DATA:
        raise HealingError("healing learns from data, and the run was made without any; give --calib FILE")
    calibration = read_calibration(dense, settings)
    if calibration is None:
        raise HealingError(
            "there is no data that the model can be run on: it comes without a tokenizer, or does not read text; give "
            "its inputs with --calib inputs.npz, or --tokenizer"
        )
    if calibration.provenance["samples"] < FEWEST:
        raise HealingError(
            f"{calibration.provenance['samples']} samples are too few to learn from some and be judged by others; "
            f"give at least {FEWEST}, better some thousands"
        )
    return calibration


def _known(folder: Path) -> Report | None:
    """The report of the run, if it has one that can be read."""
    path = folder / REPORT_FILE
    if not path.is_file():
        return None
    return Report.from_json(read_json(path, "report"))
