"""A finished run measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lowrank.artifacts.lock import holding
from lowrank.backends import Opening
from lowrank.core.structures.base import Replacement
from lowrank.edge.target import Target
from lowrank.evaluate.measure import Measures, measure
from lowrank.evaluate.tasks.benchmark import read_benchmark
from lowrank.parallel import one_thread_each
from lowrank.pipeline.healing_graphs import model_in
from lowrank.pipeline.plans import replacements
from lowrank.pipeline.run.layout import RUN
from lowrank.pipeline.run.provenance import provenance
from lowrank.pipeline.run.read import read_run
from lowrank.pipeline.run.read_back import held_in_graph
from lowrank.pipeline.run.write import write_report
from lowrank.pipeline.session import open_session
from lowrank.progress import Track, silent
from lowrank.results.parts import Quality
from lowrank.results.report import Report, held_against


@one_thread_each()
@holding("run")
def evaluate(
    run: str | Path = RUN, *, tasks: Sequence[str] = (), opening: Opening | None = None, track: Track = silent
) -> Report:
    """Measure a finished run again: its `model/` and `model.onnx` against the model that it was made from.

    Args:
        run: its folder.
        tasks: what it is measured on beside fidelity: `sts:FILE`, ... (see `read_tasks`). Without any, what an
            earlier measurement of the same files gave stays in the report.
        opening: how to build the original if its file does not say.
        track: shows progress.

    Raises:
        TaskError: if a task cannot be read, or is not one for this model.
        PlanMismatch: if the original has changed since.
        ArtifactError: if the run is not complete.
    """
    folder = Path(run).expanduser()
    analysis, plan, known = read_run(folder)
    session = open_session(None, folder, stored=analysis, opening=opening, track=track)
    session = replace(session, current=analysis)
    refit = bool(known and known.provenance.refit)

    def layers() -> Mapping[str, Replacement]:
        if known and known.cut:
            factored = replacements(session, plan, refit=False, permute=False)
            return {**factored, **held_in_graph(folder, analysis, plan)}
        return replacements(session, plan, refit=refit, permute=False)

    measures = Measures(
        target=known.target if known else Target(),
        benchmark=read_benchmark(tasks, session.dense, session.judges),
        exact=known.parity if known else None,
    )
    healed = known is not None and any(entry.kept for entry in known.healing)
    dense = session.dense
    small = model_in(folder, dense, analysis, plan, layers) if healed else dense.saved_in(folder, layers)
    report = measure(session.original, small, plan, folder, measures)
    report = _with_kept(report, known) if known else report
    report = replace(
        report,
        refinement=known.refinement if known else None,
        healing=known.healing if known else [],
        cut=known.cut if known else [],
        seconds=session.clock.seconds,
        provenance=provenance(analysis, plan, refit, known.cut if known else (), known),
    )
    return write_report(folder, folder, analysis, plan, report)


def _with_kept(report: Report, known: Report) -> Report:
    """With what an earlier report says of the same files, unless it was measured again; and held against the same
    limit."""
    if known.tasks and not report.tasks:
        report = replace(report, quality=replace(report.quality or Quality(), tasks=known.tasks))
    if known.budget.kind != "drop":
        return report
    if known.budget.limit is None or {row.task for row in report.tasks} != {row.task for row in known.tasks}:
        return replace(report, budget=known.budget)
    return held_against(report, known.budget.limit)
