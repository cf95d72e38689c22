"""The stages wired together: analyze, select, compress, export, evaluate. Every stage leaves files that the next one reads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowrank import __version__
from lowrank.artifacts import hash_json, load_analysis, read_json, save_analysis, staged, write_json
from lowrank.artifacts.analysis import JSON_FILE
from lowrank.backends import Backend, Opening, open_model
from lowrank.core.analysis import Analysis, Folds, WeightAnalysis, analyze_weight
from lowrank.core.budget import Budget
from lowrank.core.match import selector_of
from lowrank.core.plan import Plan, check_budget
from lowrank.core.select import Knapsack, Selector
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement
from lowrank.core.weight import Role, Skip, Weight
from lowrank.errors import ArtifactError, ExportError, LowRankError, PatternError, PlanMismatch, UnsupportedModel
from lowrank.evaluate.report import Report
from lowrank.parallel import windowed_map
from lowrank.progress import Clock, Track, silent

RUN = "lowrank-run"
PLAN_FILE, REPORT_FILE, ONNX_FILE, MODEL_FOLDER = "plan.json", "report.json", "model.onnx", "model"
RESULTS = (PLAN_FILE, REPORT_FILE, ONNX_FILE, f"{ONNX_FILE}.data", MODEL_FOLDER)
NO_DATA = "none"
ROLES: dict[str, tuple[Role, ...]] = {
    "projections": ("projection",),
    "head": ("head",),
    "all": ("projection", "head"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which weights are looked at, and on what data. The defaults suit any model that reads text."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    targets: Sequence[str] = ("projections",)
    calib: str | None = None
    """A text file or an `.npz` of inputs; None takes text that ships with Python, for models with a tokenizer; `none`
    takes no data and leaves everything in the plain metric."""
    column: str | None = None
    samples: int = 4096

    def to_json(self) -> dict[str, Any]:
        """A mapping that JSON can hold."""
        return {
            "include": list(self.include),
            "exclude": list(self.exclude),
            "targets": list(self.targets),
            "calib": str(Path(self.calib).resolve()) if self.calib and self.calib != NO_DATA else self.calib,
            "column": self.column,
            "samples": self.samples,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Settings:
        """What `to_json` gave."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})


def analyze_backend(
    backend: Backend, settings: Settings, opening: Opening, run: Path | None, track: Track, clock: Clock
) -> Analysis:
    """The analysis of an open model; the one in `run` if it is of the same model with the same settings."""
    weights, skips = _targeted(backend, settings)
    with clock.stage("read calibration"):
        calibration = _calibration(backend, settings)
    asked = {**settings.to_json(), "opening": opening.provenance()}
    asked["calibration"] = dict(calibration.provenance) if calibration else None
    fingerprint = hash_json([backend.source["fingerprint"], asked, [w.name for w in weights]])
    if run is not None and (run / JSON_FILE).exists():
        kept = _kept(run, fingerprint)
        if kept is not None:
            return kept
    grams: dict[str, Folds] = {}
    if calibration is not None:
        from lowrank.calibrate import collect_grams

        with clock.stage("calibrate"):
            grams = collect_grams(backend.module, weights, calibration, track)  # type: ignore[attr-defined]
    with clock.stage("analyze"):
        records = analyze_weights(backend, weights, grams, track)
    if calibration is not None:
        from lowrank.calibrate import measure_sensitivity

        batches = calibration.heldout or calibration.fit
        with clock.stage("sensitivity"):
            records = measure_sensitivity(
                backend.module, calibration.signature, batches, records, grams, backend.read, track  # type: ignore[attr-defined]
            )
    return Analysis(
        weights=records,
        skips=skips,
        grams={name: folds for name, folds in grams.items() if folds.fit.tokens},
        source=dict(backend.source),
        settings=asked,
        fingerprint=fingerprint,
        notes=_notes(backend, grams, calibration is not None),
    )


def _kept(run: Path, fingerprint: str) -> Analysis | None:
    try:
        kept = load_analysis(run)
    except ArtifactError:
        return None
    return kept if kept.fingerprint == fingerprint else None


def _targeted(backend: Backend, settings: Settings) -> tuple[tuple[Weight, ...], tuple[Skip, ...]]:
    unknown = [t for t in settings.targets if t not in ROLES]
    if unknown:
        raise PatternError(f"--targets {unknown[0]}: it can be {', '.join(ROLES)}; embeddings and convolutions cannot be factored yet")
    names = [weight.name for weight in backend.weights]
    wanted = selector_of(settings.include, settings.exclude, names)
    roles = {role for target in settings.targets for role in ROLES[target]}
    # A name that is given is asked for, whatever its role.
    asked = bool(settings.include)
    chosen, skips = [], list(backend.skips)
    for weight in backend.weights:
        if not wanted(weight.name):
            skips.append(Skip(weight.name, weight.shape, "left out by --include or --exclude"))
        elif not asked and weight.role not in roles:
            skips.append(Skip(weight.name, weight.shape, "outside the repeated blocks, so taken for a head; --targets head adds it"))
        elif weight.full_rank < 2:
            skips.append(Skip(weight.name, weight.shape, "a vector: it has rank 1 already"))
        else:
            chosen.append(weight)
    if not chosen:
        raise UnsupportedModel(_nothing(skips))
    return tuple(chosen), tuple(skips)


def _nothing(skips: Sequence[Skip]) -> str:
    why = f"; {skips[0].name} {tuple(skips[0].shape)}: {skips[0].reason}" if skips else ""
    return f"the model has no weight that is targeted and can be factored ({len(skips)} left out{why}); see --targets and --include"


def _calibration(backend: Backend, settings: Settings) -> Any:
    from lowrank.backends.torch import ModuleBackend
    from lowrank.errors import CalibrationError

    if settings.calib == NO_DATA:
        return None
    path = Path(settings.calib).expanduser() if settings.calib else None
    if isinstance(backend, ModuleBackend):
        from lowrank.calibrate import load_calibration

        return load_calibration(backend, path, settings.column, settings.samples)
    if path is not None:
        raise CalibrationError(
            f"{path}: a plain state dict cannot be run, so there is nothing to calibrate; say with --arch or --config how the model "
            "is built, or leave --calib out"
        )
    return None


def analyze_weights(
    backend: Backend, weights: Sequence[Weight], grams: dict[str, Folds], track: Track = silent
) -> tuple[WeightAnalysis, ...]:
    from threadpoolctl import threadpool_limits

    def job(weight: Weight) -> WeightAnalysis:
        return analyze_weight(weight, backend.read(weight.name), grams.get(weight.name))

    # One BLAS thread in each job: eigenproblems of these sizes scale over matrices, not inside one, and the last bits
    # then do not depend on how many jobs run.
    with threadpool_limits(1):
        return tuple(track(windowed_map(job, weights), "analyzing", len(weights)))


def _notes(backend: Backend, grams: dict[str, Folds], calibrated: bool) -> tuple[str, ...]:
    notes = []
    if not calibrated:
        notes.append("no calibration data: spectra, errors and factors are in the plain metric, which ignores what the layers see")
    unseen = [name for name, folds in grams.items() if not folds.fit.tokens]
    if unseen:
        notes.append(f"{len(unseen)} weights were not reached by the calibration data and fall back to the plain metric: {', '.join(unseen[:4])}")
    bad = sum(f.fit.nonfinite + f.heldout.nonfinite for f in grams.values())
    if bad:
        notes.append(f"{bad} activations with NaN or infinity were counted and left out of the moments")
    if calibrated and grams and not any(f.heldout.tokens for f in grams.values()):
        notes.append("too few samples for a held-out fold: error curves are in-sample, and too good")
    missing = backend.source.get("not_in_checkpoint")
    if missing:
        notes.append(f"the checkpoint lacks {len(missing)} tensors, which were drawn at random: {', '.join(missing[:4])}")
    return tuple(notes)


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
    analysis = analyze_backend(open_model(model, opening), settings or Settings(), opening, run, track, Clock())
    if run is not None:
        save_analysis(analysis, run)
    return analysis


def select(analysis: Analysis, budget: Budget | float, selector: Selector | None = None) -> Plan:
    """The ranks for a budget: pure, needs no model, takes milliseconds.

    Args:
        analysis: what `analyze` gave.
        budget: a `Budget`, or a keep ratio.
        selector: the policy; by default the exact knapsack.

    Raises:
        InfeasibleBudget: if no ranks meet it.

    Example:
        plan = lowrank.select(analysis, 0.5)
    """
    budget = budget if isinstance(budget, Budget) else Budget.params(budget)
    return check_budget((selector or Knapsack()).select(analysis, budget))


def read_plan(path: Path, analysis: Analysis, budget: Budget | None) -> Plan:
    """A plan.json, perhaps edited by hand, checked against the analysis and the budget.

    Raises:
        PlanMismatch: if it does not belong to the analysis.
        InfeasibleBudget: if it is over the budget.
    """
    return check_budget(Plan.from_json(read_json(path, "plan"), analysis, budget))


def factorize(backend: Backend, analysis: Analysis, plan: Plan, track: Track = silent) -> dict[str, Replacement]:
    """What replaces each weight that the plan does not leave dense, by weight name."""
    from threadpoolctl import threadpool_limits

    groups = {group.name: group for group in analysis.groups}

    def job(option: Any) -> dict[str, Replacement]:
        structure = structure_named(option.structure)
        assert structure is not None
        return dict(structure.factorize(groups[option.group], option.rank, analysis, backend.read))

    with threadpool_limits(1):
        parts = list(track(windowed_map(job, plan.options), "factorizing", len(plan.options)))
    return {name: factors for part in parts for name, factors in part.items()}


def compress(
    model: object = None,
    budget: Budget | float | None = None,
    *,
    output: str | Path = RUN,
    plan: str | Path | None = None,
    selector: Selector | None = None,
    settings: Settings | None = None,
    opening: Opening | None = None,
    latency: bool = True,
    track: Track = silent,
) -> Report:
    """Analyze, select, factorize, rewrite, save, export and measure.

    Writes `analysis.json`, `plan.json`, `model/`, `model.onnx` and `report.json` to `output`, all or none of the last four.

    Args:
        model: a path or a live `nn.Module`; None takes the model and the analysis of `output`.
        budget: a `Budget`, or a keep ratio; may be left out when a plan is given.
        output: the run folder.
        plan: a plan.json to follow instead of selecting.
        selector: the policy; by default the exact knapsack.
        settings: which weights, and on what data; with a kept analysis, its own.
        opening: how to build the model if its file does not say.
        latency: export the dense model too and time both.
        track: shows progress.

    Raises:
        LowRankError: with what to try; what was in `output` is then as it was.

    Example:
        report = lowrank.compress("my-model", budget=0.5, output="run")
    """
    if budget is None and plan is None:
        raise LowRankError("there is no budget; give --budget 0.5 (the share of parameters to keep), --error, or a --plan")
    if isinstance(budget, int | float):
        budget = Budget.params(budget)
    run, clock = Path(output).expanduser(), Clock()
    if model is None:
        kept = load_analysis(run)
        model, opening = _source_of(kept, run, opening)
        settings = settings or Settings.from_json(dict(kept.settings))
    settings, opening = settings or Settings(), opening or Opening()
    with clock.stage("open"):
        backend = open_model(model, opening)
    _check_source(run, backend, model)
    analysis = analyze_backend(backend, settings, opening, run, track, clock)
    save_analysis(analysis, run)
    with clock.stage("select"):
        chosen = read_plan(Path(plan), analysis, budget) if plan else select(analysis, budget, selector)  # type: ignore[arg-type]
    with clock.stage("factorize"):
        small = backend.rewrite(factorize(backend, analysis, chosen, track))
    with staged(run, owned=RESULTS) as stage:
        report = _write_and_measure(backend, small, analysis, chosen, stage, settings, latency, track, clock)
    return report


def _write_and_measure(
    dense: Backend,
    small: Backend,
    analysis: Analysis,
    plan: Plan,
    stage: Path,
    settings: Settings,
    latency: bool,
    track: Track,
    clock: Clock,
) -> Report:
    """Everything of a run but its analysis, in `stage`."""
    from lowrank.backends.torch import ModuleBackend
    from lowrank.edge import export_onnx
    from lowrank.evaluate.measure import measure, reloaded, signature_of

    problems: list[str] = []
    folder, onnx = stage / MODEL_FOLDER, stage / ONNX_FILE
    folder.mkdir()
    with clock.stage("save"):
        small.save(folder)
    calibration = _calibration(dense, settings)
    if isinstance(small, ModuleBackend):
        with clock.stage("load again"):
            small = reloaded(small, folder)
        signature = signature_of(small, calibration)
        if not isinstance(signature, str):
            try:
                with clock.stage("export"):
                    export_onnx(small.module, signature, onnx)
            except ExportError as error:
                problems.append(str(error))
    report = measure(dense, small, analysis, plan, stage, calibration, latency, track, clock)
    problems += report.problems
    if problems:
        # A graph that failed its check is not left for anyone to ship.
        for name in (ONNX_FILE, f"{ONNX_FILE}.data"):
            (stage / name).unlink(missing_ok=True)
    write_json(stage / PLAN_FILE, "plan", plan.to_json())
    report = replace(
        report, problems=problems, files=_files(stage), seconds=clock.seconds, provenance=_provenance(analysis, plan)
    )
    write_json(stage / REPORT_FILE, "report", report.to_json())
    return report


def _files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def _source_of(analysis: Analysis, run: Path, opening: Opening | None) -> tuple[str, Opening]:
    path = analysis.source.get("path")
    if path is None:
        raise UnsupportedModel(f"the analysis in {run} is of a module in memory; give compress the module too")
    known = analysis.settings["opening"]
    given = opening or Opening()
    return path, replace(given, arch=given.arch or known["arch"], config=given.config or known["config"])


def _check_source(run: Path, backend: Backend, model: object) -> None:
    """Refuse when the file that the run's analysis was made from has changed under the same name."""
    if not (run / JSON_FILE).exists():
        return
    try:
        known = load_analysis(run).source
    except ArtifactError:
        return
    if known.get("path") == backend.source.get("path") and known["fingerprint"] != backend.source["fingerprint"]:
        if known.get("path") is not None:
            raise PlanMismatch(
                f"{model} has changed since it was analysed: {run / JSON_FILE} is of {known['fingerprint']}, the file is now "
                f"{backend.source['fingerprint']}; run `lowrank analyze` again"
            )


def export(model: object, output: str | Path, *, opening: Opening | None = None, opset: int | None = None) -> Path:
    """The dense model as `output/model.onnx`, written the same way as a compressed one and checked against torch.

    Raises:
        ExportError: if it cannot be traced, or what was written does not agree with torch.
    """
    from lowrank.backends.torch import ModuleBackend
    from lowrank.backends.torch.inputs import Signature
    from lowrank.edge import OPSET, export_onnx
    from lowrank.evaluate import check_parity

    backend = open_model(model, opening or Opening())
    if not isinstance(backend, ModuleBackend):
        raise ExportError(f"{model} is a plain state dict; say with --arch or --config how the model is built")
    if not isinstance(backend.signature, Signature):
        raise ExportError(f"{model} cannot be exported: {backend.signature}")
    with staged(Path(output).expanduser(), owned=(ONNX_FILE, f"{ONNX_FILE}.data")) as stage:
        export_onnx(backend.module, backend.signature, stage / ONNX_FILE, opset or OPSET)
        parity = check_parity(backend.module, backend.signature, stage / ONNX_FILE)
        if not parity.holds:
            raise ExportError(f"the exported graph differs from torch by {parity.max_abs:.2e} over {', '.join(parity.cases)}")
    return Path(output) / ONNX_FILE


def evaluate(run: str | Path = RUN, *, opening: Opening | None = None, track: Track = silent) -> Report:
    """Measure a finished run again: its `model/` and `model.onnx` against the model that it was made from.

    Raises:
        PlanMismatch: if the original has changed since.
        ArtifactError: if the run is not complete.
    """
    from lowrank.backends.torch import ModuleBackend, load
    from lowrank.evaluate.measure import measure

    folder, clock = Path(run).expanduser(), Clock()
    analysis = load_analysis(folder)
    content = read_json(folder / PLAN_FILE, "plan")
    asked = content.get("budget")
    plan = Plan.from_json(content, analysis, Budget(**asked) if asked else None)
    path, opening = _source_of(analysis, folder, opening)
    dense = open_model(path, opening)
    _check_source(folder, dense, path)
    loaded = load(folder, arch=opening.arch)
    kind = {"module": loaded} if isinstance(dense, ModuleBackend) else {"tensors": loaded}
    small: Backend = replace(dense, **kind)  # type: ignore[type-var]
    settings = Settings.from_json(dict(analysis.settings))
    report = measure(dense, small, analysis, plan, folder, _calibration(dense, settings), True, track, clock)
    report = replace(report, seconds=clock.seconds, provenance=_provenance(analysis, plan))
    write_json(folder / REPORT_FILE, "report", report.to_json())
    return report


def _provenance(analysis: Analysis, plan: Plan) -> dict[str, Any]:
    """What it takes to repeat a run."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"lowrank": __version__, "python": sys.version.split()[0]}
    for name in ("numpy", "scipy", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "command": sys.argv,
        "versions": versions,
        "source": dict(analysis.source),
        "analysis": analysis.fingerprint,
        "plan": hash_json(plan.to_json()),
    }
