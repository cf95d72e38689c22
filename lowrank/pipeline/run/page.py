"""`report.html` of a run. A page that cannot be drawn never costs what it would have shown, but that is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lowrank.artifacts import load_analysis, read_json, write_json
from lowrank.artifacts.files import RECORD_FILE
from lowrank.artifacts.lock import holding
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan
from lowrank.core.prediction import predicted_error
from lowrank.errors import ArtifactError, PlanMismatch, first_line
from lowrank.pipeline.run.layout import MODEL_FOLDER, PAGE_FILE, REPORT_FILE
from lowrank.pipeline.run.provenance import made_with
from lowrank.pipeline.run.read import check_plan, read_results
from lowrank.results.forecast import Prediction, TradeOff
from lowrank.results.json_part import Document
from lowrank.results.parts import Provenance
from lowrank.results.report import Report
from lowrank.results.sweep import Sweep

if TYPE_CHECKING:
    from lowrank.report.page.page_data import PageData

D = TypeVar("D", bound=Document)


def with_page(stage: Path, run: Path, analysis: Analysis, plan: Plan, report: Report) -> Report:
    """Write the page of a result; the report with the bytes of it among its files, or a note that there is none.

    Args:
        stage: where the page goes.
        run: the folder that it belongs to, in which the measurements of a sweep may lie.
        analysis: of the model.
        plan: that the compressed model follows.
        report: all of it but the page.
    """
    path = stage / PAGE_FILE
    files = {name: size for name, size in report.files.items() if name != PAGE_FILE}
    failed = _write(path, lambda: _data(run, analysis, plan, report))
    if failed is not None:
        return replace(report, files=files, notes=[*report.notes, failed])
    return replace(report, files=dict(sorted({**files, PAGE_FILE: path.stat().st_size}.items())))


def with_analysis_page(run: Path, analysis: Analysis) -> Analysis:
    """Write the page of an analysis, and of what was compressed with it; the analysis with a note if that fails."""
    failed = draw_page(run, analysis, made_with())
    return analysis if failed is None else replace(analysis, notes=(*analysis.notes, failed))


@holding("run")
def renew_page(run: str | Path) -> str | None:
    """Write the page of a run anew, from what lies in it; what to say if that fails.

    Raises:
        ArtifactError: if there is no analysis in the folder.
    """
    folder = Path(run).expanduser()
    return draw_page(folder, load_analysis(folder))


def draw_page(run: Path, analysis: Analysis, provenance: Provenance | None = None) -> str | None:
    """Write the page of an analysis and of what else lies in its run; what to say if that fails.

    Args:
        run: the run folder, locked.
        analysis: that lies in it.
        provenance: of the analysis, where there is no report.
    """
    plan, report, remarks = _results(run, analysis)
    failed = _write(run / PAGE_FILE, lambda: _data(run, analysis, plan, report, provenance, remarks))
    if report is not None and PAGE_FILE in report.files and failed is None:
        files = {**report.files, PAGE_FILE: (run / PAGE_FILE).stat().st_size}
        write_json(run / REPORT_FILE, "report", replace(report, files=files).to_json())
    return failed


def page_data_in(run: str | Path) -> PageData:
    """What there is to show of a run, as data.

    Raises:
        ArtifactError: if there is no analysis in the folder.
    """
    folder = Path(run).expanduser()
    analysis = load_analysis(folder)
    plan, report, remarks = _results(folder, analysis)
    return _data(folder, analysis, plan, report, remarks=remarks)


def _data(
    run: Path,
    analysis: Analysis,
    plan: Plan | None,
    report: Report | None,
    provenance: Provenance | None = None,
    remarks: tuple[str, ...] = (),
) -> PageData:
    from lowrank.report.page.page_data import page_data_of

    chosen = plan and Prediction(keep=plan.keep_ratio, error=predicted_error(analysis, plan))
    trade_off, unread = _document(run, TradeOff)
    sweep, more = _document(run, Sweep)
    if trade_off is not None and trade_off.analysis != analysis.fingerprint:
        trade_off = None
    return page_data_of(
        analysis,
        plan,
        report,
        provenance=provenance,
        chosen=chosen,
        trade_off=trade_off,
        sweep=sweep if sweep is not None and sweep.points else None,
        remarks=(*remarks, *unread, *more),
    )


def _document(run: Path, kind: type[D]) -> tuple[D | None, tuple[str, ...]]:
    """A document of a run, if there is one, and what to say if it cannot be read."""
    if not (run / kind.file).is_file():
        return None, ()
    try:
        return kind.from_json(read_json(run / kind.file, kind.file.removesuffix(".json"))), ()
    except ArtifactError as error:
        return None, (f"{kind.file} is not shown: {error}",)


def _write(path: Path, data: Callable[[], PageData]) -> str | None:
    try:
        from lowrank.report.page.webpage import write_page

        write_page(path, data())
    except (OSError, ArtifactError):
        # A full disk is no fault of the page: nothing else could be written, either.
        raise
    except Exception as error:
        # Whatever went wrong with a picture, the model and its numbers are whole.
        path.unlink(missing_ok=True)
        why = f"{type(error).__name__}: {first_line(error)}"
        return f"{PAGE_FILE} could not be made ({why}); the .json files beside it have its figures"
    return None


def _results(run: Path, analysis: Analysis) -> tuple[Plan | None, Report | None, tuple[str, ...]]:
    """The plan and the report of a run, if they belong to its analysis, and what to say if they do not."""
    if not (run / REPORT_FILE).is_file():
        return None, None, ()
    try:
        plan, report = read_results(run, analysis)
        if (run / MODEL_FOLDER / RECORD_FILE).is_file():
            check_plan(run, plan, analysis)
        return plan, report, ()
    except PlanMismatch as error:
        why = "are of an earlier analysis or plan, and are not shown here"
        return None, None, (f"the results in this folder {why}: {error}",)
    except ArtifactError as error:
        return None, None, (f"the results in this folder are not shown: {error}",)
