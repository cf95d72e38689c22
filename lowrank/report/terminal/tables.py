"""Tables for the terminal: spectra, ranks, dense against compressed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from lowrank.core.analysis import Analysis, WeightAnalysis
from lowrank.core.budget import NAMES
from lowrank.core.match import stem
from lowrank.core.plan import Plan
from lowrank.core.share import percent
from lowrank.core.structures import structure_named
from lowrank.core.truncation.spectrum import Spectrum
from lowrank.report.fidelity import FIGURES, MEANING, columns_of_sets
from lowrank.report.shipped import columns_of_files
from lowrank.results.parts import Cut, HealingResult, Quality, Refinement
from lowrank.results.report import Report

BARS = " ▁▂▃▄▅▆▇█"


def sparkline(record: WeightAnalysis, width: int = 12) -> str:
    """The spectrum as a row of bars, logarithmic from 1 (full bar) to 1e-3 of the largest value."""
    values = (record.activation or record.plain).values
    if not len(values) or values[0] <= 0:
        return ""
    picked = values[np.linspace(0, len(values) - 1, min(width, len(values))).astype(int)] / values[0]
    height = 1 + np.log10(np.maximum(picked, 1e-3)) / 3
    return "".join(BARS[round(float(h) * (len(BARS) - 1))] for h in height)


def spectra_table(analysis: Analysis) -> Table:
    """One row a weight."""
    with_data = any(record.activation for record in analysis.weights)
    table = Table(title="Spectra", title_justify="left", caption_justify="left", box=None, pad_edge=False)
    table.add_column("weight", no_wrap=True)
    heads = ["shape", "dtype", "params", "stable", "effective", "90/95/99 %"]
    heads += ["in data 90/95/99 %"] if with_data else []
    for name in [*heads, "break-even", "error there", "sensitivity"]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("spectrum", no_wrap=True)
    for record in analysis.weights:
        weight = record.weight
        row = [
            stem(weight.name),
            f"{weight.rows} x {weight.cols}",
            weight.dtype,
            f"{weight.params:,}",
            f"{record.plain.stable_rank:.1f}",
            f"{record.plain.effective_rank:.1f}",
            _ranks(record.plain),
        ]
        if with_data:
            row.append(_ranks(record.activation) if record.activation else "-")
        error = float(record.error_curve[record.break_even]) ** 0.5
        row += [str(record.break_even), f"{error:.3f}", f"{record.sensitivity:.3g}", sparkline(record)]
        table.add_row(*row)
    apart = any(record.heldout is not None for record in analysis.weights)
    metric = "in the plain metric"
    if with_data:
        metric = "on held-out data" if apart else "on the data that chose the directions"
    table.caption = (
        "stable: |W|F^2/|W|2^2; effective: entropy rank; 90/95/99 %: ranks that keep that energy; error there: "
        f"relative output error of two factors at the break-even rank, {metric}; sensitivity: squared error of the "
        "model's output for a unit of the weight's own"
    )
    return table


def _ranks(spectrum: Spectrum) -> str:
    return "/".join(str(spectrum.rank_at_energy(energy)) for energy in (0.90, 0.95, 0.99))


def skipped_table(analysis: Analysis) -> Table:
    """What is left as it is, and why."""
    table = Table(title="Left as it is", title_justify="left", box=None, pad_edge=False)
    table.add_column("tensor", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("why")
    for skip in analysis.skips:
        table.add_row(stem(skip.name), " x ".join(map(str, skip.shape)), skip.reason)
    return table


def plan_table(plan: Plan, analysis: Analysis) -> Table:
    """The chosen ranks, one row a group."""
    table = Table(title="Ranks", title_justify="left", caption_justify="left", box=None, pad_edge=False)
    table.add_column("weight", no_wrap=True)
    for name in ("shape", "structure", "rank", *(("type",) if plan.is_typed else ()), "kept", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    groups = analysis.groups
    for option in plan.options:
        group = groups[option.group]
        shapes = (analysis[name].weight.shape for name in group.weights)
        table.add_row(
            stem(option.group),
            ", ".join(f"{rows} x {cols}" for rows, cols in shapes),
            option.structure,
            "-" if structure_named(option.structure).is_dense else str(option.rank),
            *((option.dtype,) if plan.is_typed else ()),
            f"{option.cost / analysis.params(group):.2f}",
            f"{option.error**0.5:.3f}",
        )
    table.caption = f"keep ratio {plan.keep_ratio:.4f}"
    if plan.budget is not None and plan.budget.kind in ("bytes", "macs", "latency"):
        table.caption += f", of {NAMES[plan.budget.kind]} {plan.reached:.4f}"
    if plan.budget is not None and plan.budget.kind == "speedup":
        table.caption += f", {plan.reached:.3g} times as fast, as predicted"
    if plan.budget is not None and plan.budget.kind == "size" and plan.share is not None:
        table.caption += f", {int(plan.share):,} bytes of {int(plan.budget.limit):,}"
    if plan.gap == 0:
        table.caption += "; no choice of ranks has a smaller predicted error"
    elif plan.gap is not None:
        table.caption += f"; at most {plan.gap:.3%} above the smallest predicted error of any choice of ranks"
    return table


def _lost(training: Refinement | HealingResult) -> str:
    """The held-out loss that a training came to, in words."""
    if training.kept and training.after is not None and training.before:
        return f"{training.after:.4g}, {training.after / training.before:.3f} of before"
    return "no better"


def report_table(report: Report) -> Table:
    """Dense against compressed."""
    table = Table(title="Dense against compressed", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in ("dense", "compressed", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    targets, model = report.targets, report.model
    _compared(table, "targeted parameters", targets.params_before, targets.params_after)
    for key, label in (
        ("params", "all parameters"),
        ("bytes", "bytes of tensors"),
        ("macs", "multiply-adds a token"),
    ):
        _compared(table, label, model[f"{key}_before"], model[f"{key}_after"])
    if report.latency:
        times = report.latency
        _compared(table, "bytes of model.onnx", times.dense_onnx_bytes, times.compressed_onnx_bytes)
        if times.predicted_ms is not None:
            table.add_row("ms that were predicted", "", f"{times.predicted_ms:.2f}", "")
        table.add_row(
            f"ms in ONNX Runtime ({times.shapes[0]}, 1 thread)",
            f"{times.dense_ms:.2f}",
            f"{times.compressed_ms:.2f}",
            f"{1 / times.speedup:.3f}",
        )
    for name, value in report.quality.figures.items() if report.quality and not report.quality.sets else ():
        if name != "samples":
            table.add_row(f"{FIGURES.get(name, name)}", "", f"{value:.4f}", "")
    if report.quality is None and report.error.relative is not None:
        table.add_row("relative error of the weights", "", f"{report.error.relative:.4f}", "")
    if report.error.cast_relative is not None:
        table.add_row("error of rounding the factors to their types", "", f"{report.error.cast_relative:.4f}", "")
    if report.cut:
        _cut(table, report.cut[-1])
    if report.refinement is not None:
        done = f"{report.refinement.steps} steps a block"
        table.add_row(f"held-out loss after refinement ({done})", "", _lost(report.refinement), "")
    for entry in report.healing:
        done = f"{entry.steps} steps, {entry.batch} samples at a time in memory"
        done += f", {entry.in_bits} matrices in the bits of the file" if entry.in_bits else ""
        table.add_row(f"held-out loss after healing ({done})", "", _lost(entry), "")
    if report.onnx:
        graph = report.onnx
        before, after = (
            ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in (counts or {}).items())
            for counts in (graph.dense_fused, graph.fused)
        )
        table.add_row(f"operators that run as one (--profile {graph.profile})", before, after, "")
        if graph.rounding_error is not None:
            types = "mixed types" if graph.dtype == "mixed" else graph.dtype
            table.add_row(f"relative error by rounding to {types}", "", f"{graph.rounding_error:.4f}", "")
    if report.parity:
        table.add_row("model against its ONNX file, largest difference", "", f"{report.parity.max_abs:.1e}", "")
        if report.parity.noise:
            noise = f"{report.parity.noise:.1e}"
            table.add_row("what other roundings of the model change, of its largest output", "", noise, "")
    return table


def sets_table(quality: Quality) -> Table:
    """How often a user gets the dense model's answer: one row for each set."""
    heads, lines = columns_of_sets(quality)
    table = table_of("Same answers as the dense model", [SHORT_HEADS.get(head, head) for head in heads], lines)
    table.caption = f"how often: {MEANING.get(quality.kind or '', '')}"
    return table


def files_table(report: Report) -> Table:
    """The files that one could ship: one row for each."""
    return table_of("Files to ship", *columns_of_files(report))


def table_of(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table of words on the left and numbers beside them."""
    table = Table(title=title, title_justify="left", caption_justify="left", box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


SHORT = {"relative_error": "relative error", "spearman": "Spearman", "kl": "KL"}
SHORT_HEADS = {FIGURES[name]: word for name, word in SHORT.items()}


def tasks_table(report: Report) -> Table:
    """How what was lost differs from task to task: one row each."""
    table = Table(title="Tasks", title_justify="left", caption_justify="left", box=None, pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for name in ("dense", "compressed", "drop", "95 % interval", "samples"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.tasks:
        relative = not row.higher_is_better
        interval = "-" if row.low is None else f"{_drop(row.low, relative)} to {_drop(row.high or 0.0, relative)}"
        table.add_row(
            row.task,
            row.metric,
            f"{row.dense:.4f}",
            f"{row.compressed:.4f}",
            _drop(row.drop, relative),
            interval,
            "-" if row.samples is None else f"{row.samples:,}",
        )
    table.caption = "drop: positive is worse; for metrics that should be low it is the relative increase in percent"
    resamples = max(row.resamples for row in report.tasks)
    if resamples:
        table.caption += f"; interval: paired bootstrap over the samples, {resamples} resamples"
    return table


def _drop(value: float, relative: bool) -> str:
    return f"{value:+.2%}" if relative else f"{value:+.4f}"


def _cut(table: Table, entry: Cut) -> None:
    """What a finished result has lost by being cut again."""
    table.add_row("keep ratio of the result that was cut", f"{entry.keep_before:.4f}", f"{entry.keep_after:.4f}", "")
    if entry.quality and entry.quality.fidelity is not None:
        label = f"same answers as the result that was cut, {entry.quality.where}"
        table.add_row(label, "", percent(entry.quality.fidelity), "")
    figures = entry.quality.figures if entry.quality else {}
    for name in ("relative_error", "cosine", "kl"):
        if name in figures:
            table.add_row(f"{FIGURES[name]}, against the earlier result", "", f"{figures[name]:.4f}", "")
    if entry.quality is None and entry.weights is not None:
        table.add_row("relative error of the weights, against the earlier result", "", f"{entry.weights:.4f}", "")


def _compared(table: Table, label: str, before: int, after: int) -> None:
    table.add_row(label, f"{before:,}", f"{after:,}", f"{after / before:.3f}" if before else "")
