"""The first stage: from a model to its Analysis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeVar, Unpack

from lowrank.artifacts import hash_json, make_folder, save_analysis
from lowrank.artifacts.analysis import COUPLINGS, GRAMS, RECORD, read_in
from lowrank.artifacts.directions import DIRECTIONS_FOLDER, StoredDirections
from lowrank.artifacts.grams import StoredGrams
from lowrank.artifacts.journal import NOWHERE, Journal, Journaled, close_journal, open_journal
from lowrank.artifacts.lock import holding
from lowrank.backends import Backend, is_streamed
from lowrank.calibrate.collect import collect_grams
from lowrank.calibrate.interactions import measure_contexts
from lowrank.calibrate.sensitivity import measure_sensitivity
from lowrank.core.analysis import Analysis, CouplingAnalysis, Folds, Numbers, WeightAnalysis
from lowrank.core.linalg.drivers import Fallback, watched_solvers
from lowrank.core.linalg.eigen import singular_vectors
from lowrank.core.listing import listed
from lowrank.core.structures import structures
from lowrank.core.weight import Coupling, Weight
from lowrank.core.weight_analysis import analyze_weight
from lowrank.parallel import Pool, one_thread_each, processes, threads
from lowrank.pipeline.estimate import check_room, estimate, keeps_directions
from lowrank.pipeline.forecasting import with_forecast
from lowrank.pipeline.run.layout import PAGE_FILE
from lowrank.pipeline.run.page import with_analysis_page
from lowrank.pipeline.session import Session, WorkOptions, open_session
from lowrank.pipeline.targets import targeted, usable
from lowrank.progress import Track, silent
from lowrank.version import __version__

STAGE = "analyze"
"""Of a run's journal."""
T = TypeVar("T")
R = TypeVar("R")


@one_thread_each()
@holding("output")
def analyze(model: object, *, output: str | Path | None = None, **options: Unpack[WorkOptions]) -> Analysis:
    """Spectra, error curves and Grams of a model's targeted weights.

    Args:
        model: a path (see `open_model`) or a live `nn.Module`.
        output: a run folder to keep the analysis in, and to take it from if it is there already.
        options: `settings`, which weights, and on what data; `opening`, how to build the model if its file does not
            say; `execution`, in how much memory, on which machines, and whether from where an earlier run was stopped;
            `track`, which shows progress.

    Raises:
        LowRankError: with what to try.

    Example:
        analysis = lowrank.analyze("my-model", settings=lowrank.Settings(calib="sentences.txt"))
    """
    run = Path(output).expanduser() if output is not None else None
    session = with_analysis(open_session(model, run, **options))
    if run is None:
        return session.analysis
    known, session = session.is_saved, with_saved_analysis(session)
    if known and (run / PAGE_FILE).exists():
        return session.analysis
    return with_analysis_page(run, session.analysis)


def with_saved_analysis(session: Session) -> Session:
    """The session with its analysis in the run folder, where it is written unless it was taken from there."""
    run = session.run
    assert run is not None
    if not session.is_saved:
        save_analysis(session.analysis, run)
        analysis = read_in(run, session.analysis)
        session = replace(session, current=analysis, stored=analysis)
    close_journal(run, STAGE)
    return session


def with_analysis(session: Session, keep: float | None = None) -> Session:
    """The session with an analysis: the run's, if it is of the same model with the same settings, or a new one.

    Pieces of a new one stay in the journal of the run until `with_saved_analysis`, so that nothing is lost before that.

    Args:
        session: with the model and its data.
        keep: the share of the weights that a compression will keep, so that the room for it is looked at, too.

    Raises:
        LowRankError: if the model cannot be analyzed.
        SystemExit: in every process of several but the first.
    """
    backend, calibration, run = session.dense, session.calibration, session.run
    weights, skips = targeted(backend, session.settings)
    backend.check_finite()
    asked = {**session.settings.to_json(), "opening": session.opening.provenance(), "lowrank": __version__}
    asked["calibration"] = dict(calibration.provenance) if calibration else None
    fingerprint = hash_json([backend.source["fingerprint"], asked, [w.name for w in weights]])
    known = session.stored is not None and session.stored.fingerprint == fingerprint
    if processes()[0] > 0 and (known or calibration is None or is_streamed(backend)):
        # Processes share nothing but the calibration of a model that fits into each.
        raise SystemExit(0)
    if known:
        return replace(session, current=session.stored)
    identity = {
        "model": backend.source["fingerprint"],
        "version of lowrank": __version__,
        "settings": hash_json([asked, [w.name for w in weights]]),
    }
    if run is not None and processes()[0] == 0:
        data = calibration is not None
        check_room(estimate(backend, weights, keep, run, session.execution, calibrated=data, timed=False), run)
        session = replace(session, journal=open_journal(run, STAGE, identity, session.execution.resume))
    with watched_solvers() as used:
        analysis, grams = _computed(session, weights)
    analysis = replace(
        analysis,
        skips=skips,
        source=dict(backend.source),
        settings=asked,
        fingerprint=fingerprint,
        notes=(
            *(calibration.notes if calibration is not None else ()),
            *_notes(backend, weights, grams if calibration is not None else None),
            *solver_notes(used),
        ),
    )
    return replace(session, current=analysis, journal=NOWHERE)


def _computed(session: Session, weights: Sequence[Weight]) -> tuple[Analysis, Mapping[str, Folds]]:
    """The analysis of some weights, and all of their moments."""
    backend, calibration, clock = session.dense, session.calibration, session.clock
    track, journal = session.track, session.journal
    grams: Mapping[str, Folds] = {}
    couplings: list[Coupling] = []
    if calibration is not None:
        with clock.stage("couplings"):
            couplings = usable(backend, weights)
        with clock.stage("calibrate"):
            coupled = {name for coupling in couplings for name in coupling.weights}
            if is_streamed(backend):
                from lowrank.calibrate.blockwise import blockwise_grams

                grams = blockwise_grams(calibration, weights, track, journal, session.execution.left)
            else:
                # Several processes must all come here, or none.
                keeper = journal if processes()[1] == 1 else NOWHERE
                grams = keeper.kept("grams", GRAMS, lambda: collect_grams(calibration, weights, track, coupled))
    directions = None
    if journal.folder is not None and keeps_directions(backend, session.execution, calibration is not None):
        folder = make_folder(journal.folder / DIRECTIONS_FOLDER)
        directions = StoredDirections(folder, str(backend.source["fingerprint"]))
    with clock.stage("analyze"), session.execution.pool(weights, bool(grams)) as pool:
        analysis = Analysis(
            weights=analyze_weights(backend, weights, grams, track, pool, journal, directions),
            couplings=analyze_couplings(backend, couplings, grams, track, pool, journal),
            grams=informing(grams),
        )
    if directions is not None:
        analysis = replace(analysis, leading=directions)
    if calibration is not None and not is_streamed(backend):
        with clock.stage("sensitivity"):
            analysis = measure_sensitivity(calibration, analysis, track, journal)
        # Runs trial models, whose plans are the knapsack's whatever selector is used later.
        with clock.stage("contexts"):
            analysis = measure_contexts(calibration, analysis, track, journal)
        with clock.stage("forecast"):
            analysis = with_forecast(session, analysis)
    return analysis, grams


@dataclass(frozen=True, slots=True)
class _WeightJob:
    """The analysis of one weight, which it reads itself."""

    numbers: Numbers
    grams: Mapping[str, Folds]
    rounded: bool
    directions: StoredDirections | None = None
    """Where those of what is decomposed in the plain metric go; None if they are not kept."""

    def __call__(self, weight: Weight) -> WeightAnalysis:
        matrix, folds = self.numbers.read(weight.name), self.grams.get(weight.name)
        values = None
        if self.directions is not None and folds is None:
            values, basis = singular_vectors(matrix, name=weight.name)
            self.directions.store(weight, basis)
        return analyze_weight(weight, matrix, folds, self.rounded, values)


def analyze_weights(
    backend: Backend,
    weights: Sequence[Weight],
    grams: Mapping[str, Folds],
    track: Track = silent,
    pool: Pool | None = None,
    journal: Journal = NOWHERE,
    directions: StoredDirections | None = None,
) -> tuple[WeightAnalysis, ...]:
    """The spectra and error curves of all weights.

    Args:
        backend: where the weights are.
        weights: which.
        grams: the second moments of their inputs, by weight name.
        track: shows progress.
        pool: where they are computed; by default a thread for each core.
        journal: has the results of an earlier run, and keeps those of this one.
        directions: where the leading ones go; None if they are not kept.
    """
    # What is streamed has no graph whose bytes would be counted.
    job = Journaled(_WeightJob(backend, grams, not is_streamed(backend), directions), journal, _name, RECORD)
    return tuple(_mapped(job, weights, pool, track, "analyzing"))


def _mapped(job: Callable[[T], R], items: Sequence[T], pool: Pool | None, track: Track, label: str) -> list[R]:
    """The results of a job for all items, in their order."""
    with nullcontext(pool) if pool is not None else threads() as workers:
        return list(track(workers.map(job, items), label, len(items)))


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
    """The error curves of every structure that fits, for all couplings; arguments as in `analyze_weights`."""

    def measured(coupling: Coupling) -> Sequence[CouplingAnalysis]:
        analyses = (structure.measure(coupling, grams, backend) for structure in structures())
        return [each for each in analyses if each is not None]

    if not couplings:
        return ()
    job = Journaled(measured, journal, lambda coupling: f"{coupling.kind}: {', '.join(coupling.weights)}", COUPLINGS)
    return tuple(chain.from_iterable(_mapped(job, couplings, pool, track, "analyzing couplings")))


def solver_notes(used: Sequence[Fallback]) -> tuple[str, ...]:
    """What to say of decompositions that the usual solver did not do; nothing if there were none."""
    if not used:
        return ()
    drivers, names = sorted({each.driver for each in used}), list(dict.fromkeys(each.name for each in used))
    return (
        f"LAPACK's usual eigensolver (syevd) did not converge for {len(names)} weights, which were decomposed with "
        f"{' and '.join(drivers)}: {listed(names)}",
    )


def informing(grams: Mapping[str, Folds]) -> Mapping[str, Folds]:
    """Those that tell something of their weight; of those on disk there are no others."""
    return grams if isinstance(grams, StoredGrams) else {name: f for name, f in grams.items() if f.fit.informs}


def _notes(backend: Backend, weights: Sequence[Weight], grams: Mapping[str, Folds] | None) -> tuple[str, ...]:
    notes: list[str] = []
    if grams is None:
        notes.append(
            "no calibration data: spectra, errors and factors are in the plain metric, which ignores what the "
            "layers see"
        )
    facts = grams.facts() if isinstance(grams, StoredGrams) else grams or {}
    unseen = [w.name for w in weights if w.name not in facts or not facts[w.name].fit.informs]
    if grams is not None and unseen:
        notes.append(
            f"{len(unseen)} weights got no calibration data, or only zeros and numbers that are not finite; they "
            f"fall back to the plain metric: {listed(unseen)}"
        )
    bad = {name: f.fit.nonfinite + f.heldout.nonfinite for name, f in facts.items()}
    where = [name for name, count in bad.items() if count]
    if where:
        notes.append(
            f"{sum(bad.values())} activations with NaN or infinity were counted and left out of the moments, at "
            f"{len(where)} weights: {listed(where)}"
        )
    if facts and not any(f.heldout.tokens for f in facts.values()):
        notes.append("too few samples for a held-out fold: error curves are of the fitted samples, and too low")
    notes += backend.source.get("notes", ())
    missing = backend.source.get("not_in_checkpoint")
    if missing:
        notes.append(f"the checkpoint lacks {len(missing)} tensors, which were drawn at random: {listed(missing)}")
    return tuple(notes)
