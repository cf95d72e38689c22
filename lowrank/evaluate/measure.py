"""A Report: one compressed model, with its ONNX file, against the model that it was made from."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Signature
from lowrank.backends.onnx.save import file_size
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan
from lowrank.core.prediction import weight_error
from lowrank.edge.counts import fused_counts
from lowrank.edge.target import Target
from lowrank.errors import ExportError, TaskError
from lowrank.evaluate.fidelity import Runs, measure_fidelity
from lowrank.evaluate.latency import measure_latency
from lowrank.evaluate.parity import check_parity
from lowrank.evaluate.session import FileModel
from lowrank.evaluate.sizes import budget_of, per_weight_error, sizes_of, skipped_of, targets_of
from lowrank.evaluate.tasks.benchmark import Benchmark
from lowrank.progress import Clock, Track, silent
from lowrank.results.parts import Errors, Graph, Latency, Parity, Quality
from lowrank.results.report import ONNX_FILE, Report

SEQUENCE = 128


@dataclass(frozen=True)
class Subject:
    """What a compressed model is measured against, and how that is shown."""

    dense: Backend
    """The original."""
    analysis: Analysis
    """Of the original."""
    calibration: Calibration | None
    """Its report fold is what fidelity is measured on; random inputs without it."""
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
    """`exactness` of a graph before it was rounded."""


def measure(subject: Subject, small: Backend, plan: Plan, folder: Path, measures: Measures) -> Report:
    """Everything that report.json holds of a compressed model and the `model.onnx` in its folder.

    Args:
        subject: the original.
        small: the compressed model, as loaded from the folder.
        plan: that the compressed model follows.
        folder: where `model.onnx` is, if there is one.
        measures: what is measured.
    """
    dense, analysis, calibration = subject.dense, subject.analysis, subject.calibration
    track, clock, target, exact = subject.track, subject.clock, measures.target, measures.exact
    notes, problems = [*analysis.notes, *plan.notes], list[str]()
    if plan.budget is not None and plan.budget.kind == "size" and (folder / ONNX_FILE).exists():
        plan = replace(plan, share=float(file_size(folder / ONNX_FILE)))
    parity = times = quality = graph = None
    relative: float | None
    onnx = folder / ONNX_FILE
    if isinstance(small.signature, Signature):
        rounded = None
        with clock.stage("fidelity"):
            try:
                rounded = FileModel(onnx, small.signature.output) if target.is_rounded and onnx.exists() else None
                quality = quality_of(dense, rounded or small, calibration, track)
            except ExportError as error:
                problems.append(str(error))
                rounded, exact = None, None
                quality = quality_of(dense, small, calibration, track)
        relative = quality.relative_error
        lost = [name for name, value in quality.figures.items() if not math.isfinite(value)]
        if lost:
            problems.append(f"the outputs are not finite, so {', '.join(lost)} cannot be measured; look at the weights")
            quality, relative = None, None
        try:
            if onnx.exists():
                with clock.stage("parity"):
                    parity = exact if target.is_rounded else exactness(small, onnx)
                    lost_by_rounding = quality_of(small, rounded, calibration, silent) if rounded is not None else None
                    graph = Graph(
                        **asdict(target),
                        fused=fused_counts(onnx),
                        rounding_error=lost_by_rounding and lost_by_rounding.relative_error,
                    )
                if measures.latency:
                    with clock.stage("latency"):
                        shown = track((onnx,), "timing both models", 1)
                        judge = partial(quality_of, dense, calibration=calibration, track=silent)
                        times, before, plain = next(compare_latency(dense, path, target, judge) for path in shown)
                        graph = replace(graph, dense_fused=before)
                        times = replace(times, predicted_ms=_predicted(plan))
                        quality = replace(quality, dense_rounded=plain) if quality and plain else quality
                        notes += [*_lost_fusions(graph), *_better_dense(times)]
        except ExportError as error:
            problems.append(str(error))
    else:
        relative = weight_error(analysis, plan)
        notes.append(
            f"no model.onnx and no measured quality: {small.signature}; give inputs with --calib inputs.npz, or say "
            "with --arch package.module:factory or --config config.json how the model is built"
        )
    if measures.benchmark is not None:
        with clock.stage("tasks"):
            try:
                assert isinstance(small.signature, Signature)
                final = FileModel(onnx, small.signature.output) if parity is not None and onnx.exists() else small
                quality = replace(quality or Quality(), tasks=measures.benchmark.compare(final, track))
            except (ExportError, TaskError) as error:
                problems.append(str(error))
    return Report(
        targets=targets_of(analysis, plan),
        model=sizes_of(dense, small.params, small.nbytes, analysis, plan),
        budget=budget_of(plan),
        error=Errors(relative=relative, per_weight=per_weight_error(analysis, plan)),
        onnx=graph,
        parity=parity,
        latency=times,
        quality=quality,
        skipped=skipped_of(analysis),
        notes=notes,
        problems=problems,
    )


def quality_of(dense: Backend, small: Runs, calibration: Calibration | None, track: Track) -> Quality:
    """How near the outputs of a model are to those of another one."""
    signature = dense.signature
    assert isinstance(signature, Signature)
    random = [signature.example(4, min(16, signature.max_sequence), seed) for seed in range(4)]
    batches = list(calibration.report) if calibration is not None else random
    figures = measure_fidelity(dense, small, track(batches, "measuring fidelity", len(batches)))
    return Quality.from_json({**figures, "data": "random inputs" if calibration is None else calibration.report_label})


def exactness(small: Backend, path: Path) -> Parity:
    """The parity of a model and a graph that was not rounded.

    Raises:
        ExportError: if they differ.
    """
    parity = check_parity(small, path)
    if not parity.holds:
        raise ExportError(
            f"{ONNX_FILE} differs from the model by {parity.max_abs:.2e} ({parity.relative:.1e} of the largest "
            f"output) over "
            f"{'; '.join(parity.cases)}; the factored model itself is complete"
        )
    return Parity(max_abs=parity.max_abs, relative=parity.relative, cases=list(parity.cases))


def _lost_fusions(graph: Graph) -> list[str]:
    """Notes on what the dense model runs as one operator, and the compressed one does not."""
    after, before = graph.fused, graph.dense_fused or {}
    return [
        f"{after[kind]} of {count} fused operators for {kind.replace('_', ' ')} are left in the compressed graph"
        for kind, count in before.items()
        if after[kind] < count
    ]


def _predicted(plan: Plan) -> float | None:
    """Milliseconds that the model was expected to take, if it was chosen for its time."""
    table = plan.selector.get("timings")
    whole = table.get("whole") if isinstance(table, dict) else None
    return plan.share * whole / 1e3 if plan.share is not None and whole is not None else None


def _better_dense(times: Latency) -> list[str]:
    """Where the dense model in fewer bits is the better choice."""
    won = [
        word
        for word, ours, plain in (
            ("smaller", times.compressed_onnx_bytes, times.dense_rounded_onnx_bytes),
            ("faster", times.compressed_ms, times.dense_rounded_ms),
        )
        if plain is not None and plain < ours
    ]
    return [f"the dense model in {times.dense_rounded_to} is {' and '.join(won)} than this one"] if won else []


def _alike(target: Target) -> Target:
    """What a dense model is rounded to beside a compressed one: the same; the smallest, where types were chosen; and
    int8 beside floating numbers, since that is what anyone would try first."""
    return replace(target, dtype={"mixed": "int4", "float32": "int8"}.get(target.dtype, target.dtype))


def compare_latency(
    dense: Backend, small: Path, target: Target, judge: Callable[[Runs], Quality]
) -> tuple[Latency, dict[str, int], Quality | None]:
    """A file beside the dense model for the same target, and beside the dense model in fewer bits.

    Args:
        dense: the original.
        small: the file.
        target: what the file was written for.
        judge: gives the quality of a model.

    Returns:
        Times and bytes of all of them; the operators that the dense model runs as one; and the quality of the dense
        model in fewer bits, with its `dtype`, if it can be rounded.

    Raises:
        ExportError: if the dense model cannot be exported.
    """
    from lowrank.edge.graph_file import fit_file

    signature, rounded = dense.signature, _alike(target)
    assert isinstance(signature, Signature)
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "exact"
        exact.mkdir()
        files = {"dense": exact / ONNX_FILE, "compressed": small}
        dense.write_onnx(files["dense"])
        # Copied, since tracing a model takes seconds.
        plain = shutil.copytree(exact, Path(folder) / "rounded") / ONNX_FILE
        quality: Quality | None = None
        try:
            fit_file(plain, rounded, signature)
            quality = replace(judge(FileModel(plain, signature.output)), dtype=rounded.dtype)
            files["dense_rounded"] = plain
        except ExportError:
            # What nobody asked for must not spoil what there is.
            if target.is_rounded:
                raise
        fit_file(files["dense"], replace(target, dtype="float32"), signature)
        fused = fused_counts(files["dense"])
        sizes = {name: file_size(path) for name, path in files.items()}
        times = measure_latency(files, signature, 1, SEQUENCE)
    sequence = f" x {min(SEQUENCE, signature.max_sequence)}" if signature.has_sequence else ""
    return (
        Latency(
            dense_ms=times["dense"],
            compressed_ms=times["compressed"],
            dense_rounded_ms=times.get("dense_rounded"),
            speedup=times["dense"] / times["compressed"],
            threads=1,
            cores=os.cpu_count(),
            shapes=[f"1{sequence}"],
            dense_onnx_bytes=sizes["dense"],
            compressed_onnx_bytes=sizes["compressed"],
            dense_rounded_onnx_bytes=sizes.get("dense_rounded"),
            dense_rounded_to=rounded.dtype if quality else None,
        ),
        fused,
        quality,
    )
