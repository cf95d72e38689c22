"""Writing what a run comes to: the model, its graphs, its plan, and a report of what was measured."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lowrank import edge
from lowrank.artifacts import read_json, write_json
from lowrank.artifacts.files import RECORD_FILE
from lowrank.backends import Backend
from lowrank.backends.inputs import Feed, Signature, spread
from lowrank.backends.onnx.save import file_size
from lowrank.backends.records import wide_heads
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan, stored_weights
from lowrank.core.rounding.formats import Stored
from lowrank.edge.graph_file import fit_file, fit_for, write_again
from lowrank.edge.target import Target
from lowrank.errors import ExportError
from lowrank.evaluate.choice import which_to_take
from lowrank.evaluate.generation import check_generation
from lowrank.evaluate.graph import FileModel
from lowrank.evaluate.measure import Measures, measure
from lowrank.evaluate.parity import check_parity
from lowrank.pipeline.budgets.faster import faster
from lowrank.pipeline.publish.model_card import write_card
from lowrank.pipeline.run.layout import MODEL_FOLDER, PLAN_FILE, REPORT_FILE, SCRIPT_FILE, WITH_PAST_FILE, files_of
from lowrank.pipeline.run.page import with_page
from lowrank.pipeline.run.provenance import provenance
from lowrank.pipeline.session import Session
from lowrank.results.parts import Cut, HealingResult, Parity, Refinement
from lowrank.results.report import INT8_FILE, ONNX_FILE, Report, held_against

TOKENS = 16384
"""Of the calibration data that graphs are rounded on."""
WORTHWHILE = 0.9
"""Of the bytes of an exact graph: what a second one may have at most."""


@dataclass(frozen=True, kw_only=True)
class WriteOptions(Measures):
    """What of a result is written and measured."""

    with_past: bool = False
    """Write `model_with_past.onnx`."""
    int8: bool = False
    """Write `model_int8.onnx` beside an exact graph, where eight bits make it smaller."""
    max_drop: float | None = None
    """How much it may lose on the tasks."""


@dataclass(frozen=True, kw_only=True)
class History:
    """What came before a result is measured."""

    refit: bool
    """Whether its replacements were fitted to what they see in the compressed model."""
    refinement: Refinement | None = None
    """How its blocks were fitted to the dense ones; None if they were not."""
    healing: Sequence[HealingResult] = ()
    cut: Sequence[Cut] = ()
    problems: Sequence[str] = ()
    remarks: Sequence[str] = ()
    before: Report | None = None
    """What was measured of the run that it was made from."""


def write_and_measure(
    session: Session, small: Backend, plan: Plan, stage: Path, output: WriteOptions, history: History
) -> Report:
    """Write everything of a result but its analysis to `stage`, a folder for the session's run, and measure it."""
    run = session.run
    assert run is not None
    clock, target = session.clock, output.target
    problems, notes, stored = list(history.problems), list[str](), stored_weights(plan, session.analysis)
    folder, onnx = stage / MODEL_FOLDER, stage / ONNX_FILE
    folder.mkdir()
    with clock.stage("save"):
        small.save(folder)
    notes += wide_heads(read_json(folder / RECORD_FILE, "model").get("replaced", {}))
    with clock.stage("load again"):
        small = small.reloaded(folder)
    if not isinstance(small.signature, str):
        try:
            with clock.stage("export"):
                for path in session.track((onnx,), "writing ONNX", 1):
                    exact, remarks = write_graphs(small, path, output, rounding_feeds(session.calibration), stored)
                    output, notes = replace(output, exact=exact), [*notes, *remarks]
        except ExportError as error:
            problems.append(str(error))
            _delete_graph(stage, ONNX_FILE, INT8_FILE)
    if output.with_past:
        try:
            with clock.stage("export with past"):
                notes += write_past(small, stage, target, stored)
        except ExportError as error:
            problems.append(str(error))
            _delete_graph(stage, WITH_PAST_FILE)
    if onnx.exists():
        plan = _with_bytes(plan, file_size(onnx), problems)
    report = measure(session.original, small, plan, stage, output)
    if report.latency is not None and (advice := faster(session, target, report.latency)):
        report.unfit.append(advice)
    if output.max_drop is not None:
        report = held_against(report, output.max_drop)
        report = replace(report, take=which_to_take(report))
    problems += report.problems
    if report.parity is None:
        # A graph that failed its check is not left for anyone to ship.
        _delete_graph(stage, ONNX_FILE, INT8_FILE)
    elif not (run / SCRIPT_FILE).exists():
        # One that is there may be the user's own, or changed.
        shutil.copyfile(Path(edge.__file__).with_name("standalone.py"), stage / SCRIPT_FILE)
    write_json(stage / PLAN_FILE, "plan", plan.to_json())
    report = replace(
        report,
        problems=problems,
        notes=[*report.notes, *history.remarks, *notes],
        refinement=history.refinement,
        healing=list(history.healing),
        cut=list(history.cut),
        seconds=clock.seconds,
        provenance=provenance(session.analysis, plan, history.refit, history.cut, history.before),
    )
    return write_report(stage, run, session.analysis, plan, report)


def write_report(stage: Path, run: Path, analysis: Analysis, plan: Plan, report: Report) -> Report:
    """Write the model card, the page and the report of a result; the report with the bytes of all files.

    Args:
        stage: where the result lies.
        run: the folder that it goes to.
        analysis: of the dense model.
        plan: that the compressed model follows.
        report: all of it but the files.
    """
    write_card(stage / MODEL_FOLDER, report)
    report = with_page(stage, run, analysis, plan, replace(report, files=files_of(stage)))
    write_json(stage / REPORT_FILE, "report", report.to_json())
    return report


def rounding_feeds(calibration: Calibration | None) -> Sequence[Feed]:
    """The inputs on which graphs are rounded; none without data."""
    return spread(calibration.fit, TOKENS) if calibration is not None else ()


def _with_bytes(plan: Plan, nbytes: int, problems: list[str]) -> Plan:
    """The plan with the bytes that its graph has, if those are its budget; a problem if they are more than allowed."""
    budget = plan.budget
    if budget is None or budget.most_bytes is None:
        return plan
    if nbytes > budget.most_bytes:
        problems.append(
            f"{ONNX_FILE} has {nbytes:,} bytes with its numbers, and {int(budget.most_bytes):,} were allowed; lower "
            "some ranks of the plan, or give more"
        )
    return replace(plan, share=float(nbytes)) if budget.kind == "size" else plan


def write_graphs(
    small: Backend, path: Path, output: WriteOptions, feeds: Sequence[Feed], stored: Mapping[str, Stored]
) -> tuple[Parity | None, list[str]]:
    """Write the graph of a model, and the one in eight bits beside it if that is wanted.

    Returns:
        How exact a graph was before it was rounded, None for one that is not; and remarks on what stayed as it was.

    Raises:
        ExportError: if it cannot be written, or does not agree with the model.
    """
    target, notes, exact = output.target, list[str](), None
    small, remarks = fit_for(small, target)
    assert isinstance(small.signature, Signature)
    small.write_onnx(path)
    if target.is_rounded:
        exact = check_parity(small, path)
    elif output.int8:
        notes += write_int8(small, path, target, feeds)
    return exact, [*remarks, *notes, *fit_file(path, target, small.signature, feeds, stored)]


def write_int8(small: Backend, exact: Path, target: Target, feeds: Sequence[Feed]) -> list[str]:
    """Write `model_int8.onnx` beside a graph, unless eight bits would not make it smaller; notes on what stayed as it
    was.

    Args:
        small: the model.
        exact: its graph, as `Backend.write_onnx` gives it.
        target: what it is for.
        feeds: inputs on which it is rounded.
    """
    path, signature, eight = exact.with_name(INT8_FILE), small.signature, replace(target, dtype="int8")
    assert isinstance(signature, Signature)
    try:
        other, notes = write_again(small, exact, path, eight)
        if other is not small:
            check_parity(other, path)
        notes += fit_file(path, eight, signature, feeds)
        FileModel(path, signature).run(signature.example(1, 4))
    except ExportError as error:
        # What nobody asked for must not spoil what there is.
        _delete_graph(path.parent, INT8_FILE)
        return [f"{INT8_FILE} is left out: {error}"]
    if file_size(path) > WORTHWHILE * file_size(exact):
        _delete_graph(path.parent, INT8_FILE)
        return [f"{INT8_FILE} is left out: eight bits would not make the graph a tenth smaller"]
    return [f"{INT8_FILE}: {note}" for note in notes]


def write_past(backend: Backend, stage: Path, target: Target, stored: Mapping[str, Stored] | None = None) -> list[str]:
    """Write `model_with_past.onnx` and let it generate; notes on what of it is not as asked for.

    Raises:
        ExportError: if it cannot be written, does not run, or chooses other tokens than torch.
    """
    path = stage / WITH_PAST_FILE
    backend, notes = fit_for(backend, target)
    assert isinstance(backend.signature, Signature)
    backend.write_with_past(path)
    remarks = check_generation(backend, path)
    if target == Target():
        return remarks
    # Its inputs are not those of the calibration data, so it is rounded to the nearest, and no range can be fixed.
    if target.is_fixed and target.is_rounded:
        notes.append("what it multiplies is rounded to the range of each run, as --profile portable does it")
    notes += fit_file(path, target.without_data, backend.signature, stored=stored)
    check_generation(backend, path, exact=not target.is_rounded)
    return [*remarks, *(f"{path.name}: {note}" for note in notes)]


def _delete_graph(folder: Path, *names: str) -> None:
    for name in names:
        for each in (name, f"{name}.data"):
            (folder / each).unlink(missing_ok=True)
