"""A Report: one compressed model, with its ONNX file, against the model that it was made from."""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.onnx.save import file_size
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan
from lowrank.edge.counts import fused_counts
from lowrank.edge.target import Target
from lowrank.errors import ExportError, TaskError
from lowrank.evaluate.choice import which_to_take
from lowrank.evaluate.dense_graph import DenseGraph
from lowrank.evaluate.fitness import unfit
from lowrank.evaluate.graph import FileModel
from lowrank.evaluate.judges import Judges
from lowrank.evaluate.latency import measure_latency
from lowrank.evaluate.parity import check_parity
from lowrank.evaluate.planned import planned_report
from lowrank.evaluate.tasks.benchmark import Benchmark
from lowrank.machine import cores
from lowrank.progress import Clock, Track
from lowrank.results.parts import Graph, Latency, Parity, Quality
from lowrank.results.report import INT8_FILE, ONNX_FILE, Report

SEQUENCE = 128


@dataclass(frozen=True)
class Original:
    """The dense model that a compressed one is measured against, and how the measuring is shown."""

    dense: Backend
    analysis: Analysis
    graph: DenseGraph
    """Of the dense model."""
    judges: Judges
    """What fidelity is measured by."""
    track: Track
    """Shows progress."""
    clock: Clock
    """Counts seconds by stage."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured of a compressed model."""

    target: Target = field(default_factory=Target)
    """What its graphs are for."""
    latency: bool = True
    """Export the dense model too, and time both."""
    benchmark: Benchmark | None = None
    """Tasks that `model.onnx` is measured on beside fidelity, or the model itself if there is no such file."""
    exact: Parity | None = None
    """Of a graph before it was rounded."""


def measure(original: Original, small: Backend, plan: Plan, folder: Path, measures: Measures) -> Report:
    """Everything that report.json holds of a compressed model and the `model.onnx` in its folder.

    Args:
        original: that it is measured against.
        small: the compressed model, as loaded from the folder.
        plan: that the compressed model follows.
        folder: where `model.onnx` is, if there is one.
        measures: what is measured.
    """
    onnx = folder / ONNX_FILE
    if plan.budget is not None and plan.budget.kind == "size" and onnx.exists():
        plan = replace(plan, share=float(file_size(onnx)))
    report = planned_report(original.dense, small.params, small.nbytes, original.analysis, plan)
    if report.budget.size is not None and onnx.exists():
        report = replace(report, budget=replace(report.budget, size_reached=float(file_size(onnx))))
    if isinstance(small.signature, str):
        report.notes.append(
            f"no model.onnx and no measured quality: {small.signature}; give inputs with --calib inputs.npz, or say "
            "with --arch package.module:factory or --config config.json how the model is built"
        )
    else:
        report = _run(report, original, small, onnx, measures)
        if measures.latency and report.latency is not None:
            report = replace(report, latency=replace(report.latency, predicted_ms=_predicted_ms(plan)))
    if measures.benchmark is not None:
        with original.clock.stage("tasks"):
            try:
                exported = report.parity is not None and onnx.exists()
                final = FileModel(onnx, signature_of(small)) if exported else small
                tasks = measures.benchmark.compare(final, original.track)
                report = replace(report, quality=replace(report.quality or Quality(), tasks=tasks))
            except (ExportError, TaskError) as error:
                report.problems.append(str(error))
    return _with_finite_quality(replace(report, unfit=unfit(report, original.analysis)))


def _with_finite_quality(report: Report) -> Report:
    """The report with nothing but tasks of its quality, where the fidelity is no number."""
    quality = report.quality
    if quality is None or quality.if_finite is not None:
        return report
    return replace(report, quality=Quality(tasks=quality.tasks) if quality.tasks else None)


def _run(report: Report, original: Original, small: Backend, onnx: Path, measures: Measures) -> Report:
    """The report with what running the model and its graph shows: fidelity, parity and latency."""
    clock, target, exact, rounded = original.clock, measures.target, measures.exact, None
    with clock.stage("fidelity"):
        try:
            if target.is_rounded and onnx.exists():
                rounded = FileModel(onnx, signature_of(small))
            quality = original.judges.quality_of(rounded or small, original.track)
        except ExportError as error:
            report.problems.append(str(error))
            rounded = exact = None
            quality = original.judges.quality_of(small, original.track)
    report.notes.extend([*original.judges.notes, *signature_of(small).left_out_notes, *_unused(small)])
    lost = [row.name for row in quality.sets or () if not math.isfinite(row.fidelity)]
    if lost:
        report.problems.append(
            f"the outputs are not finite on {', '.join(lost)}, so fidelity cannot be measured; look at the weights"
        )
    report = replace(report, quality=quality, error=replace(report.error, relative=quality.relative_error))
    if not onnx.exists():
        return report
    try:
        with clock.stage("parity"):
            report = replace(report, parity=exact if target.is_rounded else check_parity(small, onnx))
            own = original.judges.sets[:1]
            by_rounding = rounded and Judges(small, own).quality_of(rounded).relative_error
            graph = Graph(**asdict(target), fused=fused_counts(onnx), rounding_error=by_rounding)
            report = replace(report, onnx=graph)
        if measures.latency:
            with clock.stage("latency"):
                for path in original.track((onnx,), "timing both models", 1):
                    report = timed(report, original, path)
            report.notes.extend(_lost_fusions(report.onnx))
    except ExportError as error:
        report.problems.append(str(error))
    return report


def _unused(small: Backend) -> list[str]:
    """A note on each output that the graph has, and that nothing is judged by."""
    return [f"not judged by {output.name}: {output.unused}" for output in signature_of(small).outputs if output.unused]


def _lost_fusions(graph: Graph | None) -> list[str]:
    """Notes on what the dense model runs as one operator, and the compressed one does not."""
    assert graph is not None
    after, before = graph.fused, graph.dense_fused or {}
    return [
        f"ONNX Runtime fuses {after[kind]} operators for {kind.replace('_', ' ')} in the compressed graph, "
        f"{count} in the dense one"
        for kind, count in before.items()
        if after[kind] < count
    ]


def _predicted_ms(plan: Plan) -> float | None:
    """Milliseconds that the model was expected to take, if it was chosen for its time."""
    table = plan.selector.get("timings")
    whole = table.get("whole") if isinstance(table, dict) else None
    return plan.share * whole / 1e3 if plan.share is not None and whole is not None else None


def _alike(report: Report) -> Target:
    """What a dense model is rounded to beside a compressed one: the same; int4, the smallest that is of use without
    training, where types were chosen for their bytes; and else int8, since that is what anyone would try first. With
    fixed ranges it would have to be calibrated; ONNX Runtime, in which it is timed, is as fast with others."""
    mixed = "int8" if report.budget.kind == "speedup" else "int4"
    target = report.target.without_data
    return replace(target, dtype={"mixed": mixed, "float32": "int8"}.get(target.dtype, target.dtype))


def timed(report: Report, original: Original, path: Path) -> Report:
    """The report of a compressed model with times and bytes of its graph, of the dense model's for the same target, and
    of both in fewer bits, whose quality is measured, too, if they can be rounded; and with which of them to take.

    Args:
        report: of the compressed model, with what its graph was written for.
        original: that it is measured against.
        path: the graph.

    Raises:
        ExportError: if the dense model cannot be exported.
    """
    from lowrank.edge.graph_file import fit_file

    assert report.onnx is not None
    signature, target = signature_of(original.dense), report.target
    rounded = _alike(report)
    with tempfile.TemporaryDirectory() as folder:
        exact, plain = (Path(folder) / name / ONNX_FILE for name in ("exact", "rounded"))
        files = {"dense": exact, "compressed": path}
        # Each under its own name: that of the file of numbers is part of a graph's bytes.
        for copy in (exact, plain):
            copy.parent.mkdir()
            original.graph.write(copy)
        quality: Quality | None = None
        try:
            fit_file(plain, rounded, signature)
            quality = _rounded_quality(original, plain, rounded.dtype)
            files["dense_rounded"] = plain
        except ExportError:
            # What nobody asked for must not spoil what there is.
            if target.is_rounded:
                raise
        int8 = path.with_name(INT8_FILE)
        files |= {"int8": int8} if int8.exists() else {}
        fit_file(files["dense"], replace(target, dtype="float32"), signature)
        graph = replace(report.onnx, dense_fused=fused_counts(files["dense"]))
        sizes = {name: file_size(path) for name, path in files.items()}
        times = measure_latency(files, signature, 1, SEQUENCE)
    sequence = f" x {min(SEQUENCE, signature.max_sequence)}" if signature.has_sequence else ""
    latency = Latency(
        dense_ms=times["dense"],
        compressed_ms=times["compressed"],
        dense_rounded_ms=times.get("dense_rounded"),
        speedup=times["dense"] / times["compressed"],
        threads=1,
        cores=cores(),
        shapes=[f"1{sequence}"],
        dense_onnx_bytes=sizes["dense"],
        compressed_onnx_bytes=sizes["compressed"],
        dense_rounded_onnx_bytes=sizes.get("dense_rounded"),
        dense_rounded_to=rounded.dtype if "dense_rounded" in files else None,
        int8_ms=times.get("int8"),
        int8_onnx_bytes=sizes.get("int8"),
    )
    if report.quality:
        ours = _rounded_quality(original, int8, "int8") if "int8" in files else None
        report = replace(report, quality=replace(report.quality, dense_rounded=quality, int8=ours))
    report = replace(report, onnx=graph, latency=latency)
    return replace(report, take=which_to_take(report))


def _rounded_quality(original: Original, path: Path, dtype: str) -> Quality | None:
    """What is measured of a graph in fewer bits; None where its outputs are not finite."""
    quality = original.judges.quality_of(FileModel(path, signature_of(original.dense)))
    return replace(quality, dtype=dtype).if_finite
