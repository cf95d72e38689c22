"""A search for what meets limits best: keep ratio, structures, type, healing; each trial is what `compress` gives."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Unpack

from lowrank.artifacts import read_json, staged, write_json
from lowrank.artifacts.analysis import ANALYSIS_FILES
from lowrank.artifacts.files import linked
from lowrank.artifacts.journal import PROGRESS_FOLDER, close_journal
from lowrank.artifacts.lock import holding
from lowrank.backends.onnx.save import file_size
from lowrank.core.budget import Budget
from lowrank.core.selection.knapsack import Knapsack
from lowrank.edge.target import Target
from lowrank.errors import ArtifactError, ExportError, LowRankError
from lowrank.evaluate.latency import measure_latency
from lowrank.evaluate.tasks.base import Score
from lowrank.healing.training import Training
from lowrank.parallel import one_thread_each
from lowrank.pipeline.budgets.quality_drop import check_drop
from lowrank.pipeline.compressing import compress
from lowrank.pipeline.evaluating import evaluate
from lowrank.pipeline.run.layout import RESULTS, RUN, SCRIPT_FILE
from lowrank.pipeline.search.bench import Bench, open_bench
from lowrank.pipeline.search.methods import data_of
from lowrank.pipeline.search.study import Study, import_optuna
from lowrank.pipeline.session import Work, WorkOptions
from lowrank.results.report import ONNX_FILE
from lowrank.results.tuning import GOALS, Limits, Trial, Tuning, best_of, nearest_of
from lowrank.version import __version__

STAGE = "tune"


class TuneOptions(WorkOptions, total=False):
    """Keywords of `tune`."""

    trials: int
    minutes: float | None
    heal: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Effort(Work):
    """The same with its defaults."""

    trials: int = 30
    minutes: float | None = None
    heal: float = 0.0
    seed: int = 0


@one_thread_each()
@holding("output")
def tune(
    model: object,
    *,
    output: str | Path = RUN,
    task: str = "fidelity",
    max_drop: float = 0.01,
    size: Budget | None = None,
    latency: Budget | None = None,
    **options: Unpack[TuneOptions],
) -> Tuning:
    """Search the keep ratio, the structures, the type of numbers and the minutes of healing with Optuna.

    The smallest file within the limits is looked for; the fastest, if the size has a limit; the one of least drop, if
    time has one, too. One analysis serves all trials, and each trial is what `compress` gives. The best one becomes
    the run's result; without one the run stays as it is.

    Args:
        model: a path or a live `nn.Module`.
        output: the run folder; the study is kept in it.
        task: what quality is; see `evaluate.tasks.read_tasks`.
        max_drop: how much of it may be lost.
        size: what the file may have; see `Budget.size`.
        latency: what a run of 128 tokens may take, `Budget.latency` or of milliseconds.
        options: any of these.

            - trials: how many, those of a study that is gone on with among them; by default 30.
            - minutes: no trial begins later.
            - heal: so many minutes of healing may be tried; by default none.
            - seed: of what is proposed.
            - settings: which weights, and on what data.
            - opening: how to build the model if its file does not say.
            - execution: whether to go on with the study that is there.
            - track: shows progress.

    Raises:
        LowRankError: with what to try.

    Example:
        found = lowrank.tune("my-model", task="sts:pairs.tsv", max_drop=0.01, size=lowrank.Budget.size(10e6))
    """
    begun, run, effort = time.monotonic(), Path(output).expanduser(), Effort(**options)
    import_optuna()
    check_drop(max_drop)
    bench = open_bench(
        model,
        run,
        task,
        bool(effort.heal),
        settings=effort.settings,
        opening=effort.opening,
        execution=effort.execution,
        track=effort.track,
    )
    session, place = bench.session, run / PROGRESS_FOLDER / STAGE
    if not session.execution.resume:
        shutil.rmtree(place, ignore_errors=True)
    workbench = Workbench(model, bench, run, place, effort.seed)
    limits = Limits(
        drop=max_drop,
        bytes=None if size is None else size.of_original(session.dense.nbytes).limit,
        ms=None if latency is None else workbench.milliseconds(latency),
    )
    identity = {
        "version of lowrank": __version__,
        "analysis": session.analysis.fingerprint,
        "task": [task, data_of(task)],
        "drop": max_drop,
        "size": limits.bytes,
        "time": latency and asdict(latency),
        "healing": effort.heal,
        "seed": effort.seed,
    }
    study = Study(run, identity, limits, effort.heal, effort.seed, session.execution.resume)
    exhausted, best = _search(study, workbench, limits, effort, begun), best_of(study.trials, limits)
    tuning = Tuning(
        task=bench.figures,
        limits=limits,
        goal=GOALS[limits.goal],
        dense=workbench.dense_figures,
        trials=study.trials,
        best=best,
        nearest=nearest_of(study.trials, limits) if best is None else None,
        exhausted=exhausted,
        provenance=bench.origin,
    )
    if best is not None:
        workbench.install(best, limits)
    write_json(run / Tuning.file, "tune", tuning.to_json())
    close_journal(run, STAGE)
    return tuning


def _search(study: Study, workbench: Workbench, limits: Limits, effort: Effort, begun: float) -> bool:
    """Make and measure trials; whether nothing is left to try."""
    left = range(len(study.trials), effort.trials)
    for _ in effort.track(left, "trying", len(left)):
        if effort.minutes is not None and time.monotonic() - begun > 60 * effort.minutes:
            return False
        proposal = study.ask()
        if proposal is None:
            return True
        asked, trial = proposal
        study.tell(asked, workbench.tried(trial))
        workbench.keep_only(best_of(study.trials, limits))
    return False


@dataclass(eq=False)
class Workbench:
    """Makes a trial, and measures it beside the dense model."""

    model: object
    bench: Bench
    run: Path
    place: Path
    """For the trials' folders."""
    seed: int

    @cached_property
    def dense_path(self) -> Path:
        """The dense model's graph."""
        path = self.place / "dense" / ONNX_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        self.bench.session.graph.write(path)
        return path

    @cached_property
    def dense_score(self) -> Score:
        """Of the dense model's graph."""
        return self.bench.score(self.dense_path)

    @cached_property
    def dense_ms(self) -> float:
        """Of the dense model alone."""
        return self._times({"dense": self.dense_path})["dense"]

    @property
    def dense_figures(self) -> dict[str, float]:
        """What a result says of the dense model."""
        size = float(file_size(self.dense_path))
        return {"bytes": size, "ms": self.dense_ms, "quality": self.dense_score.value}

    def milliseconds(self, latency: Budget) -> float:
        """What a budget of time comes to."""
        return latency.limit if latency.kind == "milliseconds" else latency.time_share * self.dense_ms

    def folder(self, trial: Trial) -> Path:
        """Of a trial's run."""
        return self.place / f"trial-{trial.number}"

    def tried(self, trial: Trial) -> Trial:
        """The same trial with what it came to."""
        try:
            path = self._made(trial)
            compared = self.bench.compared(self.dense_score, self.bench.score(path))
            times = self._times({"dense": self.dense_path, "trial": path})
        except LowRankError as error:
            return replace(trial, problem=str(error))
        return replace(
            trial,
            bytes=file_size(path),
            # As it would be in the minute in which the dense model was timed alone: machines have other work, too.
            ms=times["trial"] * self.dense_ms / times["dense"],
            quality=compared.compressed,
            drop=compared.drop,
            low=compared.low,
            high=compared.high,
        )

    def keep_only(self, best: Trial | None) -> None:
        """Remove the folders of all trials but one."""
        for folder in self.place.glob("trial-*"):
            if best is None or folder != self.folder(best):
                shutil.rmtree(folder, ignore_errors=True)

    def install(self, trial: Trial, limits: Limits) -> None:
        """Make a trial the result of the run, as `compress` would have left it."""
        folder = self.folder(trial)
        if not (folder / ONNX_FILE).is_file():
            if _holds(self.run, trial):
                return
            again = self.tried(trial)
            if again.excess(limits) > 0:
                raise LowRankError(
                    f"trial {trial.number} was repeated, and now it {again.verdict(limits)}: what training reaches "
                    "in some minutes depends on the machine's load; search again without --resume"
                )
        with staged(self.run, owned=RESULTS) as stage:
            for name in (*RESULTS, SCRIPT_FILE):
                if (folder / name).exists():
                    shutil.move(folder / name, stage / name)
        if isinstance(self.model, str | Path):
            # Trials were not timed for their reports.
            evaluate(self.run, opening=self.bench.session.opening)

    def _made(self, trial: Trial) -> Path:
        """The graph of a trial's run.

        Raises:
            LowRankError: if it cannot be made, or has problems.
        """
        folder = self.folder(trial)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ANALYSIS_FILES:
            if (self.run / name).is_dir():
                shutil.copytree(self.run / name, folder / name, copy_function=linked)
            elif (self.run / name).exists():
                linked(str(self.run / name), str(folder / name))
        offered = None if trial.structures == "all" else tuple(trial.structures.split(","))
        report = compress(
            self.model,
            trial.keep,
            output=folder,
            selector=Knapsack(structures=offered) if offered else None,
            settings=self.bench.session.settings,
            opening=self.bench.session.opening,
            heal=Training(minutes=trial.minutes, seed=self.seed) if trial.minutes else None,
            latency=False,
            int8=False,
            target=Target(dtype=trial.dtype),  # pyright: ignore[reportArgumentType]
        )
        if report.problems:
            raise ExportError(report.problems[0])
        return folder / ONNX_FILE

    def _times(self, files: Mapping[str, Path]) -> dict[str, float]:
        return measure_latency(files, self.bench.signature)


def _holds(run: Path, trial: Trial) -> bool:
    """Whether a run's result is a trial of an earlier search."""
    try:
        before = read_json(run / Tuning.file, "tune")["best"]
    except (ArtifactError, KeyError):
        return False
    path = run / ONNX_FILE
    return before == trial.to_json() and path.is_file() and file_size(path) == trial.bytes
