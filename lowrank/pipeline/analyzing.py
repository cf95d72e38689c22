"""The first stage: from a model to its Analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.artifacts import hash_json, load_analysis, save_analysis
from lowrank.artifacts.analysis import JSON_FILE, CouplingsCodec, GramsCodec, RecordCodec, kept_in
from lowrank.artifacts.grams import StoredGrams
from lowrank.artifacts.journal import NOWHERE, Journal, Journaled, close_journal, open_journal
from lowrank.artifacts.lock import holding
from lowrank.backends import Backend, Opening, is_streamed, open_model
from lowrank.core.analysis import Analysis, CouplingAnalysis, Folds, Numbers, WeightAnalysis, analyze_weight
from lowrank.core.linalg.drivers import Fallback, watched_solvers
from lowrank.core.structures import structures
from lowrank.core.weight import Coupling, Weight
from lowrank.errors import ArtifactError
from lowrank.parallel import Pool, processes, threads
from lowrank.pipeline.estimate import estimate
from lowrank.pipeline.execution import Execution
from lowrank.pipeline.run.layout import PAGE_FILE
from lowrank.pipeline.run.page import with_analysis_page
from lowrank.pipeline.settings import NO_DATA, Settings
from lowrank.pipeline.targets import targeted, usable
from lowrank.progress import Clock, Track, silent
from lowrank.version import __version__

if TYPE_CHECKING:
    from lowrank.calibrate import Calibration


STAGE = "analyze"
"""Of a run's journal."""


@holding("output")
def analyze(
    model: object,
    *,
    output: str | Path | None = None,
    settings: Settings | None = None,
    opening: Opening | None = None,
    execution: Execution | None = None,
    track: Track = silent,
) -> Analysis:
    """Spectra, error curves and Grams of a model's targeted weights.

    Args:
        model: a path (see `open_model`) or a live `nn.Module`.
        output: a run folder to keep the analysis in, and to take it from if it is there already.
        settings: which weights, and on what data.
        opening: how to build the model if its file does not say.
        execution: in how much memory, on which machines, and whether from where an earlier run was stopped.
        track: shows progress.

    Raises:
        LowRankError: with what to try.

    Example:
        analysis = lowrank.analyze("my-model", settings=lowrank.Settings(calib="sentences.txt"))
    """
    opening, execution = opening or Opening(), execution or Execution()
    run = Path(output).expanduser() if output is not None else None
    kept = kept_analysis(run) if run is not None else None
    settings = settings or Settings()
    backend = open_model(model, opening, execution.memory, execution.streamed)
    calibration = read_calibration(backend, settings)
    backend = calibration.backend if calibration else backend
    analysis = analyze_backend(backend, calibration, settings, opening, kept, track, Clock(), execution, run)
    if run is not None:
        if analysis is not kept:
            save_analysis(analysis, run)
            analysis = kept_in(run, analysis)
        close_journal(run, STAGE)
        if analysis is not kept or not (run / PAGE_FILE).exists():
            analysis = with_analysis_page(run, analysis)
    return analysis


def analyze_backend(
    backend: Backend,
    calibration: Calibration | None,
    settings: Settings,
    opening: Opening,
    kept: Analysis | None,
    track: Track,
    clock: Clock,
    execution: Execution,
    run: Path | None,
) -> Analysis:
    """The analysis of an open model; the one that was kept, if it is of the same model with the same settings.

    Its pieces stay in the journal of the run until `close_journal`, so that nothing is lost before it is saved.
    """
    weights, skips = targeted(backend, settings)
    backend.check_finite()
    asked = {**settings.to_json(), "opening": opening.provenance(), "lowrank": __version__}
    asked["calibration"] = dict(calibration.provenance) if calibration else None
    fingerprint = hash_json([backend.source["fingerprint"], asked, [w.name for w in weights]])
    known = kept is not None and kept.fingerprint == fingerprint
    if processes()[0] > 0 and (known or calibration is None or is_streamed(backend)):
        # Processes share nothing but the calibration of a model that fits into each.
        raise SystemExit(0)
    if kept is not None and known:
        return kept
    identity = {
        "model": backend.source["fingerprint"],
        "version of lowrank": __version__,
        "settings": hash_json([asked, [w.name for w in weights]]),
    }
    run = run if processes()[0] == 0 else None
    if run is not None:
        estimate(backend, weights, None, run, execution, timed=False).check(run)
    journal = NOWHERE if run is None else open_journal(run, STAGE, identity, execution.resume)
    grams: Mapping[str, Folds] = {}
    couplings: list[Coupling] = []
    if calibration is not None:
        from lowrank.calibrate import collect_grams

        with clock.stage("bonds"):
            couplings = usable(backend, weights)
        with clock.stage("calibrate"):
            coupled = {name for coupling in couplings for name in coupling.weights}
            if is_streamed(backend):
                from lowrank.calibrate.blockwise import blockwise_grams

                grams = blockwise_grams(calibration, weights, track, journal)
            else:
                # Several processes must all come here, or none.
                keeper = journal if processes()[1] == 1 else NOWHERE
                grams = keeper.kept("grams", GramsCodec(), lambda: collect_grams(calibration, weights, track, coupled))
    with watched_solvers() as used:
        with clock.stage("analyze"), execution.pool(weights, bool(grams)) as pool:
            analysis = Analysis(
                weights=analyze_weights(backend, weights, grams, track, pool, journal),
                couplings=analyze_couplings(backend, couplings, grams, track, pool, journal),
                grams=informing(grams),
            )
        if calibration is not None and not is_streamed(backend):
            from lowrank.calibrate import measure_contexts, measure_sensitivity

            with clock.stage("sensitivity"):
                analysis = measure_sensitivity(calibration, analysis, track, journal)
            with clock.stage("contexts"):
                analysis = measure_contexts(calibration, analysis, track, journal)
    return replace(
        analysis,
        skips=skips,
        source=dict(backend.source),
        settings=asked,
        fingerprint=fingerprint,
        notes=(*_notes(backend, weights, grams if calibration is not None else None), *solver_notes(used)),
    )


def settings_of(kept: Analysis | None, model: object, sized: bool = False) -> Settings:
    """The settings of a run's analysis if it is of this model (or none is named), else the defaults.

    Args:
        kept: the analysis of the run.
        model: that is named.
        sized: whether the file's size counts, in which a table may be most.
    """
    default = Settings(targets=("projections", "embeddings")) if sized else Settings()
    if kept is None:
        return default
    same = model is None
    if isinstance(model, str | Path):
        same = kept.source.get("path") == str(Path(model).expanduser().resolve())
    return Settings.from_json(kept.settings) if same else default


def kept_analysis(run: Path) -> Analysis | None:
    """The analysis in a run folder, if there is a whole one."""
    try:
        return load_analysis(run) if (run / JSON_FILE).exists() else None
    except ArtifactError:
        return None


def read_calibration(backend: Backend, settings: Settings) -> Calibration | None:
    """The data that the settings name, as inputs of the model."""
    if settings.calib == NO_DATA or (settings.calib is None and is_streamed(backend)):
        # Of a large model it takes hours, so only when it is asked for.
        return None
    if is_streamed(backend):
        from lowrank.backends.checkpoint.backend import CheckpointBackend

        assert isinstance(backend, CheckpointBackend)
        backend = backend.fed()
    path = Path(settings.calib).expanduser() if settings.calib else None
    from lowrank.calibrate import load_calibration

    return load_calibration(backend, path, settings.column, settings.samples)


@dataclass(frozen=True, slots=True)
class _WeightJob:
    """The analysis of one weight, which it reads itself."""

    numbers: Numbers
    grams: Mapping[str, Folds]
    rounded: bool

    def __call__(self, weight: Weight) -> WeightAnalysis:
        matrix = self.numbers.read(weight.name)
        return analyze_weight(weight, matrix, self.grams.get(weight.name), self.rounded)


def analyze_weights(
    backend: Backend,
    weights: Sequence[Weight],
    grams: Mapping[str, Folds],
    track: Track = silent,
    pool: Pool | None = None,
    journal: Journal = NOWHERE,
) -> tuple[WeightAnalysis, ...]:
    """Spectra of all weights.

    Args:
        backend: where the weights are.
        weights: which.
        grams: by weight name.
        track: shows progress.
        pool: where they are computed; by default a thread for each core.
        journal: what is known already, and keeps what is found.
    """
    # What is streamed has no graph whose bytes would be counted.
    job = Journaled(_WeightJob(backend, grams, not is_streamed(backend)), journal, _name, RecordCodec())
    with nullcontext(pool) if pool is not None else threads() as places:
        return tuple(track(places.map(job, weights), "analyzing", len(weights)))


def _name(weight: Weight) -> str:
    return weight.name


def analyze_couplings(
    backend: Backend,
    couplings: Sequence[Coupling],
    grams: Mapping[str, Folds],
    track: Track = silent,
    pool: Pool | None = None,
    journal: Journal = NOWHERE,
) -> tuple[CouplingAnalysis, ...]:
    """What every structure can make of every coupling."""

    def measured(coupling: Coupling) -> Sequence[CouplingAnalysis]:
        found = (structure.measure(coupling, grams, backend) for structure in structures())
        return [each for each in found if each is not None]

    if not couplings:
        return ()
    job = Journaled(
        measured, journal, lambda coupling: f"{coupling.kind}: {', '.join(coupling.weights)}", CouplingsCodec()
    )
    with nullcontext(pool) if pool is not None else threads() as places:
        parts = list(track(places.map(job, couplings), "analyzing bonds", len(couplings)))
    return tuple(each for part in parts for each in part)


def solver_notes(used: Sequence[Fallback]) -> tuple[str, ...]:
    """What to say of decompositions that the usual solver did not do; nothing if there were none."""
    if not used:
        return ()
    drivers, names = sorted({each.driver for each in used}), list(dict.fromkeys(each.name for each in used))
    return (
        f"LAPACK's usual eigensolver (syevd) did not converge for {len(names)} weights, which were decomposed with "
        f"{' and '.join(drivers)}: {', '.join(names[:4])}",
    )


def informing(grams: Mapping[str, Folds]) -> Mapping[str, Folds]:
    """Those that tell something of their weight; of those on disk there are no others."""
    return grams if isinstance(grams, StoredGrams) else {name: f for name, f in grams.items() if f.fit.informs}


def _notes(backend: Backend, weights: Sequence[Weight], grams: Mapping[str, Folds] | None) -> tuple[str, ...]:
    notes = []
    if grams is None:
        notes.append(
            "no calibration data: spectra, errors and factors are in the plain metric, which ignores what the "
            "layers see"
        )
    facts = grams.facts() if isinstance(grams, StoredGrams) else grams or {}
    unseen = [w.name for w in weights if w.name not in facts or not facts[w.name].fit.informs]
    if grams is not None and unseen:
        notes.append(
            f"{len(unseen)} weights were not reached by the calibration data (or by zeros and numbers that are not "
            f"finite alone) and fall back to the plain metric: {', '.join(unseen[:4])}"
        )
    bad = {name: f.fit.nonfinite + f.heldout.nonfinite for name, f in facts.items()}
    where = [name for name, count in bad.items() if count]
    if where:
        notes.append(
            f"{sum(bad.values())} activations with NaN or infinity were counted and left out of the moments, at "
            f"{len(where)} weights: {', '.join(where[:4])}"
        )
    if facts and not any(f.heldout.tokens for f in facts.values()):
        notes.append("too few samples for a held-out fold: error curves are in-sample, and too good")
    missing = backend.source.get("not_in_checkpoint")
    if missing:
        notes.append(
            f"the checkpoint lacks {len(missing)} tensors, which were drawn at random: {', '.join(missing[:4])}"
        )
    return tuple(notes)
