"""Reading a finished run: where its model came from, and what its analysis, plan and report say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lowrank.artifacts import load_analysis, read_json
from lowrank.artifacts.files import RECORD_FILE
from lowrank.backends import Backend, Opening
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan
from lowrank.core.structures import structure_named
from lowrank.errors import ArtifactError, PlanMismatch, UnsupportedModel
from lowrank.pipeline.run.layout import MODEL_FOLDER, PLAN_FILE, REPORT_FILE
from lowrank.results.report import Report


def source_of(analysis: Analysis, run: Path, opening: Opening | None) -> tuple[str, Opening]:
    """The path of the model that an analysis was made from, and how to build it.

    Raises:
        UnsupportedModel: if it was a module in memory.
    """
    path = analysis.source.get("path")
    if path is None:
        raise UnsupportedModel(f"the analysis in {run} is of a module in memory; give compress the module too")
    known = analysis.settings.get("opening")
    if not isinstance(path, str) or not isinstance(known, dict):
        raise ArtifactError(f"the analysis in {run} does not say where its model is; run `lowrank analyze MODEL` again")
    given = opening or Opening()
    names = ("arch", "config", "tokenizer", "lora", "weights")
    return path, replace(given, **{name: getattr(given, name) or known.get(name) for name in names})


def check_source(analysis: Analysis, backend: Backend, run: Path) -> None:
    """Refuse when the file that a run was made from has changed under the same name.

    Raises:
        PlanMismatch: with both fingerprints.
    """
    path, before, now = analysis.source.get("path"), analysis.source.get("fingerprint"), backend.source["fingerprint"]
    if path is not None and path == backend.source.get("path") and before != now:
        raise PlanMismatch(
            f"{path} has changed since it was analysed: the analysis in {run} is of {before}, the file is now "
            f"{now}; run "
            f"`lowrank analyze {path}` again"
        )


def read_run(folder: Path) -> tuple[Analysis, Plan, Report | None]:
    """The analysis of a finished run, the plan that its model follows, and its report, if it has one.

    Raises:
        PlanMismatch: if the model follows another plan.
        ArtifactError: if the run is not complete.
    """
    analysis, plan, report = read_files(folder)
    check_plan(folder, plan, analysis)
    return analysis, plan, report


def read_files(folder: Path) -> tuple[Analysis, Plan, Report | None]:
    """The analysis, the plan and the report of a run as they lie there; None if there is no report.

    Raises:
        ArtifactError: if the analysis or the plan is missing or not whole.
    """
    analysis = load_analysis(folder)
    return analysis, *read_results(folder, analysis)


def read_results(folder: Path, analysis: Analysis) -> tuple[Plan, Report | None]:
    """The plan and the report of a run with some analysis; None if there is no report.

    Raises:
        ArtifactError: if one of them is missing or not whole.
        PlanMismatch: if the plan is of another analysis.
    """
    content = read_json(folder / PLAN_FILE, "plan")
    plan = Plan.from_json(content, analysis, Budget.from_json(content.get("budget")))
    path = folder / REPORT_FILE
    return plan, Report.from_json(read_json(path, "report")) if path.is_file() else None


def check_plan(folder: Path, plan: Plan, analysis: Analysis) -> None:
    """Refuse a plan that the saved model does not follow: `select` writes a new one beside it."""
    record = read_json(folder / MODEL_FOLDER / RECORD_FILE, "model")
    replaced = record.get("replaced")
    ranks = {name: entry.get("rank") for name, entry in replaced.items()} if isinstance(replaced, dict) else {}
    chosen = [option for option in plan.options if structure_named(option.structure).replaces]
    wanted = {name: option.rank for option in chosen for name in analysis.groups[option.group].weights}
    if ranks != wanted:
        odd = sorted(name for name in {*ranks, *wanted} if ranks.get(name) != wanted.get(name))
        raise PlanMismatch(
            f"{folder / PLAN_FILE} is not the plan that {folder / MODEL_FOLDER} follows: {odd[0]} has rank "
            f"{ranks.get(odd[0], 'full')} in the model and {wanted.get(odd[0], 'full')} in the plan; compress "
            f"again with it"
        )
