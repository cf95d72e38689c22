"""Session: one piece of work in progress, which is opened here for every verb."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict, Unpack

from lowrank.artifacts import load_analysis
from lowrank.artifacts.analysis import ANALYSIS_FILE
from lowrank.artifacts.journal import NOWHERE, Journal
from lowrank.backends import Backend, Opening, is_streamed, open_model
from lowrank.backends.inputs import Feed
from lowrank.calibrate.data import Calibration, load_calibration, training_batches
from lowrank.calibrate.sets import judging_sets
from lowrank.core.analysis import Analysis
from lowrank.errors import ArtifactError
from lowrank.evaluate.dense_graph import DenseGraph
from lowrank.evaluate.judges import Judges
from lowrank.evaluate.measure import Original
from lowrank.pipeline.execution import Execution
from lowrank.pipeline.run.read import check_source, source_of
from lowrank.pipeline.settings import NO_DATA, SELF, Settings
from lowrank.progress import Clock, Track, silent


class WorkOptions(TypedDict, total=False):
    """Keywords that most verbs take."""

    settings: Settings | None
    """Which weights, and on what data."""
    opening: Opening | None
    """How to build the model if its file does not say."""
    execution: Execution | None
    """In how much memory, on which machines, and whether from where an earlier run was stopped."""
    track: Track
    """Shows progress."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The same with its defaults; other keywords are a `TypeError`."""

    settings: Settings | None = None
    opening: Opening | None = None
    execution: Execution | None = None
    track: Track = silent


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """A dense model, the data that it is run on, and how work on them is done."""

    dense: Backend
    graph: DenseGraph
    judges: Judges
    """The sets that results are judged on, and the dense model's outputs on them, which are made once."""
    calibration: Calibration | None = None
    settings: Settings = field(default_factory=Settings)
    opening: Opening = field(default_factory=Opening)
    execution: Execution = field(default_factory=Execution)
    run: Path | None = None
    """The run folder; None if nothing is written."""
    clock: Clock = field(default_factory=Clock)
    track: Track = silent
    journal: Journal = NOWHERE
    stored: Analysis | None = None
    """The analysis in the run folder, which may be of another model."""
    current: Analysis | None = None
    """The analysis of this model, once there is one."""

    @property
    def analysis(self) -> Analysis:
        """The analysis of this model, which is there after `analyzed`."""
        assert self.current is not None
        return self.current

    @property
    def is_saved(self) -> bool:
        """Whether the analysis of this model is the one in the run folder."""
        return self.analysis is self.stored

    @property
    def original(self) -> Original:
        """What a compressed model is measured against."""
        return Original(self.dense, self.analysis, self.graph, self.judges, self.track, self.clock)

    @property
    def on_trial(self) -> Session:
        """The same for results that are only tried: they show no progress, and neither time nor journal counts them."""
        return replace(self, clock=Clock(), track=silent, journal=NOWHERE)


def takes_data(backend: Backend, settings: Settings) -> bool:
    """Whether a model is run on data; a streamed one only when they are asked for, as that takes hours."""
    return settings.calib != NO_DATA and (settings.calib is not None or not is_streamed(backend))


def read_calibration(backend: Backend, settings: Settings) -> Calibration | None:
    """The data that the settings name, as inputs of the model."""
    if not takes_data(backend, settings):
        return None
    if is_streamed(backend):
        from lowrank.backends.checkpoint.backend import CheckpointBackend

        assert isinstance(backend, CheckpointBackend)
        backend = backend.fed()
    if settings.calib == SELF:
        from lowrank.calibrate.said import said_calibration

        return said_calibration(backend, settings.samples)
    return load_calibration(backend, _path(settings), settings.column, settings.samples, settings.mixed)


def read_training(calibration: Calibration, settings: Settings) -> tuple[Feed, ...]:
    """All samples of the data that the settings name, but for those that the calibration judges by."""
    if settings.calib == SELF:
        return calibration.fit
    return training_batches(calibration, _path(settings), settings.column, settings.mixed)


def _path(settings: Settings) -> Path | None:
    return Path(settings.calib).expanduser() if settings.calib else None


def open_session(
    model: object,
    run: Path | None = None,
    *,
    stored: Analysis | None = None,
    check: Callable[[Backend], object] = lambda _: None,
    read: Callable[[Backend, Settings], Calibration | None] = read_calibration,
    clock: Clock | None = None,
    **options: Unpack[WorkOptions],
) -> Session:
    """Open a model, check it, and read the data that it is run on.

    Args:
        model: a path or a live module; None for the model that the run's analysis is of.
        run: the run folder; None if there is none.
        stored: the run's analysis; by default what lies in the folder.
        check: refuses a model, before its data are read.
        read: gives the data.
        clock: counts the seconds.
        options: settings (by default those of the run if the model is its own), opening, execution, track.

    Raises:
        LowRankError: if the model or its data cannot be read.
    """
    work, clock = Work(**options), clock or Clock()
    settings, opening, execution = work.settings, work.opening, work.execution or Execution()
    if stored is None and run is not None:
        stored = load_analysis(run) if model is None else stored_analysis(run)
    path, own = model, stored if model is None else None
    if own is not None and run is not None:
        path, opening = source_of(own, run, opening)
        settings = settings or Settings.from_json(own.settings)
    opening, settings = opening or Opening(), settings or Settings()
    with clock.stage("open"):
        dense = open_model(path, opening, execution.memory, execution.streamed)
    if own is not None and run is not None:
        check_source(own, dense, run)
    check(dense)
    with clock.stage("read calibration"):
        calibration = read(dense, settings)
    dense = calibration.backend if calibration else dense
    return Session(
        dense=dense,
        graph=DenseGraph(dense),
        judges=Judges(dense, judging_sets(dense, calibration)),
        calibration=calibration,
        settings=settings,
        opening=opening,
        execution=execution,
        run=run,
        clock=clock,
        track=work.track,
        stored=stored,
    )


def settings_of(stored: Analysis | None, model: object, sized: bool = False) -> Settings:
    """The settings of a run's analysis if it is of this model (or none is named), else the defaults.

    Args:
        stored: the analysis of the run.
        model: that is named.
        sized: whether the file's size counts, in which a table may be most.
    """
    default = Settings(targets=("projections", "embeddings")) if sized else Settings()
    if stored is None:
        return default
    same = model is None
    if isinstance(model, str | Path):
        same = stored.source.get("path") == str(Path(model).expanduser().resolve())
    return Settings.from_json(stored.settings) if same else default


def stored_analysis(run: Path) -> Analysis | None:
    """The analysis in a run folder, if there is a whole one."""
    try:
        return load_analysis(run) if (run / ANALYSIS_FILE).exists() else None
    except ArtifactError:
        return None
