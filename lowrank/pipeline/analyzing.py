"""The first stage: from a model to its Analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank import __version__
from lowrank.artifacts import hash_json, load_analysis, save_analysis
from lowrank.artifacts.analysis import JSON_FILE
from lowrank.backends import Backend, Opening, open_model
from lowrank.core.analysis import Analysis, BondAnalysis, Folds, WeightAnalysis, analyze_weight
from lowrank.core.match import selector_of
from lowrank.core.solvers import Fallback, watched_solvers
from lowrank.core.structures import BONDED
from lowrank.core.weight import Bond, Group, Skip, Weight
from lowrank.errors import ArtifactError, PatternError, UnsupportedModel
from lowrank.parallel import windowed_map
from lowrank.pipeline.settings import NO_DATA, ROLES, Settings
from lowrank.progress import Clock, Track, silent

if TYPE_CHECKING:
    from lowrank.calibrate import Calibration


BONDED_INPUTS = 4096
"""Wider inputs of bonded weights get no moment: it would take 128 MB for each fold of each."""

NOT_TARGETED = {
    "projection": "a projection; --targets projections adds it",
    "head": "outside the repeated blocks, so taken for a head; --targets head adds it",
    "embedding": "a table that is looked up; --targets embeddings adds it",
    "conv": "a convolution; --targets conv adds it",
}


def analyze(
    model: object,
    *,
    output: str | Path | None = None,
    settings: Settings | None = None,
    opening: Opening | None = None,
    track: Track = silent,
) -> Analysis:
    """Spectra, error curves and Grams of a model's targeted weights.

    Args:
        model: a path (see `open_model`) or a live `nn.Module`.
        output: a run folder to keep the analysis in, and to take it from if it is there already.
        settings: which weights, and on what data.
        opening: how to build the model if its file does not say.
        track: shows progress.

    Raises:
        LowRankError: with what to try.

    Example:
        analysis = lowrank.analyze("my-model", settings=lowrank.Settings(calib="sentences.txt"))
    """
    opening = opening or Opening()
    run = Path(output).expanduser() if output is not None else None
    kept = kept_analysis(run) if run is not None else None
    settings = settings or Settings()
    backend = open_model(model, opening)
    calibration = read_calibration(backend, settings)
    backend = calibration.backend if calibration else backend
    analysis = analyze_backend(backend, calibration, settings, opening, kept, track, Clock())
    if run is not None and analysis is not kept:
        save_analysis(analysis, run)
    return analysis


def analyze_backend(
    backend: Backend,
    calibration: Calibration | None,
    settings: Settings,
    opening: Opening,
    kept: Analysis | None,
    track: Track,
    clock: Clock,
) -> Analysis:
    """The analysis of an open model; the one that was kept, if it is of the same model with the same settings."""
    weights, skips = _targeted(backend, settings)
    backend.check_finite()
    asked = {**settings.to_json(), "opening": opening.provenance(), "lowrank": __version__}
    asked["calibration"] = dict(calibration.provenance) if calibration else None
    fingerprint = hash_json([backend.source["fingerprint"], asked, [w.name for w in weights]])
    if kept is not None and kept.fingerprint == fingerprint:
        return kept
    grams: dict[str, Folds] = {}
    bonds: list[Bond] = []
    if calibration is not None:
        from lowrank.calibrate import collect_grams

        with clock.stage("bonds"):
            bonds = _usable(backend, weights)
        with clock.stage("calibrate"):
            grams = collect_grams(calibration, weights, track, {name for bond in bonds for name in bond.weights})
    with watched_solvers() as used:
        with clock.stage("analyze"):
            analysis = Analysis(
                weights=analyze_weights(backend, weights, grams, track),
                bonds=analyze_bonds(backend, bonds, grams, track),
                grams={name: folds for name, folds in grams.items() if folds.fit.informs},
            )
        if calibration is not None:
            from lowrank.calibrate import measure_contexts, measure_sensitivity

            with clock.stage("sensitivity"):
                analysis = measure_sensitivity(calibration, analysis, track)
            with clock.stage("contexts"):
                analysis = measure_contexts(calibration, analysis, track)
    return replace(
        analysis,
        skips=skips,
        source=dict(backend.source),
        settings=asked,
        fingerprint=fingerprint,
        notes=(*_notes(backend, grams, calibration is not None), *solver_notes(used)),
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


def _targeted(backend: Backend, settings: Settings) -> tuple[tuple[Weight, ...], tuple[Skip, ...]]:
    unknown = [t for t in settings.targets if t not in ROLES]
    if unknown:
        raise PatternError(f"--targets {unknown[0]}: it can be {', '.join(ROLES)}, several with commas")
    names = [weight.name for weight in backend.weights] + [skip.name for skip in backend.skips]
    wanted = selector_of(settings.include, settings.exclude, names)
    roles = {role for target in settings.targets for role in ROLES[target]}
    # A name that is given is asked for, whatever its role.
    asked = bool(settings.include)
    chosen, skips = [], list(backend.skips)
    for weight in backend.weights:
        if not wanted(weight.name):
            skips.append(Skip(weight.name, weight.shape, "left out by --include or --exclude"))
        elif not asked and weight.role not in roles:
            skips.append(Skip(weight.name, weight.shape, NOT_TARGETED[weight.role]))
        elif weight.full_rank < 2:
            skips.append(Skip(weight.name, weight.shape, "a vector: it has rank 1 already"))
        else:
            chosen.append(weight)
    if not chosen:
        raise UnsupportedModel(_nothing(skips))
    return tuple(chosen), tuple(skips)


def _nothing(skips: Sequence[Skip]) -> str:
    why = f"; {skips[0].name} {tuple(skips[0].shape)}: {skips[0].reason}" if skips else ""
    return (
        f"the model has no weight that is targeted and can be factored ({len(skips)} left out{why}); "
        "see --targets and --include"
    )


def read_calibration(backend: Backend, settings: Settings) -> Calibration | None:
    """The data that the settings name, as inputs of the model."""
    if settings.calib == NO_DATA:
        return None
    path = Path(settings.calib).expanduser() if settings.calib else None
    from lowrank.calibrate import load_calibration

    return load_calibration(backend, path, settings.column, settings.samples)


def analyze_weights(
    backend: Backend, weights: Sequence[Weight], grams: dict[str, Folds], track: Track = silent
) -> tuple[WeightAnalysis, ...]:
    """Spectra of all weights, a thread for each core."""
    from threadpoolctl import threadpool_limits

    def job(weight: Weight) -> WeightAnalysis:
        return analyze_weight(weight, backend.read(weight.name), grams.get(weight.name))

    # One BLAS thread in each job: eigenproblems of these sizes scale over matrices, not inside one, and the last bits
    # then do not depend on how many jobs run.
    with threadpool_limits(1):
        return tuple(track(windowed_map(job, weights), "analyzing", len(weights)))


def analyze_bonds(
    backend: Backend, bonds: Sequence[Bond], grams: dict[str, Folds], track: Track = silent
) -> tuple[BondAnalysis, ...]:
    """What every structure can make of every bond, a thread for each core."""
    from threadpoolctl import threadpool_limits

    def job(bond: Bond) -> list[BondAnalysis]:
        found = (structure.measure(bond, grams, backend) for structure in BONDED)
        return [each for each in found if each is not None]

    with threadpool_limits(1):
        parts = list(track(windowed_map(job, bonds), "analyzing bonds", len(bonds)))
    return tuple(each for part in parts for each in part)


def targeted_groups(backend: Backend, settings: Settings) -> list[tuple[Group, list[Weight]]]:
    """All that could be decided on, with the weights of each: every targeted weight by itself, and every bond.

    Raises:
        UnsupportedModel: if no weight is targeted.
    """
    weights, _ = _targeted(backend, settings)
    by_name = {weight.name: weight for weight in weights}
    groups = [*(Group(w.name, (w.name,)) for w in weights), *map(Group.of, _usable(backend, weights))]
    return [(group, [by_name[name] for name in group.weights]) for group in groups]


def _usable(backend: Backend, weights: Sequence[Weight]) -> list[Bond]:
    """The bonds between targeted weights whose moments are not too wide to keep."""
    targeted = {w.name: w for w in weights}
    return [
        bond
        for bond in backend.bonds
        if all(name in targeted and targeted[name].cols <= BONDED_INPUTS for name in bond.weights)
    ]


def solver_notes(used: Sequence[Fallback]) -> tuple[str, ...]:
    """What to say of decompositions that the usual solver did not do; nothing if there were none."""
    if not used:
        return ()
    drivers, names = sorted({each.driver for each in used}), list(dict.fromkeys(each.name for each in used))
    return (
        f"LAPACK's usual eigensolver (syevd) did not converge for {len(names)} weights, which were decomposed with "
        f"{' and '.join(drivers)}: {', '.join(names[:4])}",
    )


def _notes(backend: Backend, grams: dict[str, Folds], calibrated: bool) -> tuple[str, ...]:
    notes = []
    if not calibrated:
        notes.append(
            "no calibration data: spectra, errors and factors are in the plain metric, which ignores what the "
            "layers see"
        )
    unseen = [name for name, folds in grams.items() if not folds.fit.informs]
    if unseen:
        notes.append(
            f"{len(unseen)} weights were not reached by the calibration data (or by zeros and numbers that are not "
            f"finite alone) and fall back to the plain metric: {', '.join(unseen[:4])}"
        )
    bad = {name: f.fit.nonfinite + f.heldout.nonfinite for name, f in grams.items()}
    where = [name for name, count in bad.items() if count]
    if where:
        notes.append(
            f"{sum(bad.values())} activations with NaN or infinity were counted and left out of the moments, at "
            f"{len(where)} weights: {', '.join(where[:4])}"
        )
    if calibrated and grams and not any(f.heldout.tokens for f in grams.values()):
        notes.append("too few samples for a held-out fold: error curves are in-sample, and too good")
    missing = backend.source.get("not_in_checkpoint")
    if missing:
        notes.append(
            f"the checkpoint lacks {len(missing)} tensors, which were drawn at random: {', '.join(missing[:4])}"
        )
    return tuple(notes)
