"""Tables of what was compared: budgets, the points of a sweep, and the trials of a search."""

from __future__ import annotations

from rich.table import Table

from lowrank.results.forecast import TradeOff
from lowrank.results.sweep import Sweep
from lowrank.results.tuning import Tuning


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", caption_justify="left", box=None, pad_edge=False)


def sweep_table(sweep: Sweep) -> Table:
    """All points, the dense model first."""
    table = _table("Size, time and quality")
    table.add_column("point", no_wrap=True)
    metric = sweep.task["metric"]
    heads = ("bytes", "of dense", "ms", "of dense", metric, "drop", "95 %", "minutes", "front")
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    dense = sweep.points[0]
    for p in sweep.points:
        interval = f"{p.low:+.4f} .. {p.high:+.4f}" if p.low is not None else ""
        table.add_row(
            p.name,
            f"{p.bytes:,}",
            f"{p.bytes / dense.bytes:.3f}",
            f"{p.ms:.2f}",
            f"{p.ms / dense.ms:.3f}",
            f"{p.quality:.4f}",
            f"{p.drop:+.4f}",
            interval,
            "" if p.minutes is None else f"{p.minutes:g}",
            "yes" if p.on_front else "",
        )
    table.caption = (
        f"{metric} of {sweep.task['name']}; ms of a run in ONNX Runtime ({sweep.shape}, 1 thread), all files in turn; "
        "front: no other point is as good in bytes, ms and drop, and better in one"
    )
    return table


def trade_off_table(predicted: TradeOff) -> Table:
    """What each budget is predicted to lose, the smallest one first."""
    table = _table("Trade-off")
    for name in ("parameters kept", f"predicted error of the {'output' if predicted.of_output else 'weights'}"):
        table.add_column(name, justify="right", no_wrap=True)
    for point in predicted.points:
        table.add_row(f"{point.keep:.3f}", f"{point.error:.4f}")
    return table


def trials_table(tuning: Tuning) -> Table:
    """What a search tried, in the order in which it did."""
    table = _table("Trials")
    metric = tuning.task["metric"]
    for name in ("trial", "keep", "structures", "type", "healed", "bytes", "ms", metric, "drop"):
        table.add_column(name, justify="left" if name in ("structures", "type") else "right", no_wrap=True)
    table.add_column("verdict")
    for trial in tuning.trials:
        verdict = trial.verdict(tuning.limits)
        measures = ["", "", "", ""]
        if trial.problem is None:
            measures = [f"{trial.bytes:,}", f"{trial.ms:.2f}", f"{trial.quality:.4f}", f"{trial.drop:+.4f}"]
        table.add_row(
            str(trial.number),
            f"{trial.keep:g}",
            trial.structures if trial.keep < 1 else "",
            trial.dtype,
            f"{trial.minutes:g} min" if trial.minutes else "",
            *measures,
            f"best: {verdict}" if trial == tuning.best else verdict,
        )
    dense = tuning.dense
    table.caption = (
        f"{metric} of {tuning.task['name']}; dense: {int(dense['bytes']):,} bytes, {dense['ms']:.2f} ms, "
        f"{dense['quality']:.4f}; keep 1: no weight is factored"
    )
    return table
