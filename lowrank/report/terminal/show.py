"""What a command shows of its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.report.terminal.terminal import complain, notes, print_json, print_table, say

if TYPE_CHECKING:
    from lowrank.core.analysis import Analysis
    from lowrank.results.forecast import Estimate, TradeOff
    from lowrank.results.report import Report


def show_analysis(analysis: Analysis) -> None:
    """The spectra, what is skipped, and whether factoring pays."""
    from lowrank.core.verdict import forecast_sentences, verdict
    from lowrank.report.terminal.tables import skipped_table, spectra_table

    print_table(spectra_table(analysis))
    if analysis.skips:
        print_table(skipped_table(analysis))
    notes(analysis.notes)
    say(verdict(analysis))
    for sentence in forecast_sentences(analysis.forecast):
        say(sentence)


def show_estimate(estimate: Estimate, as_json: bool) -> None:
    """What a run will take."""
    if as_json:
        print_json(estimate.to_json())
        return
    how = "streamed weight by weight" if estimate.streamed else "whole in memory"
    say(f"{estimate.weights} weights, {how}, {estimate.jobs} at once")
    say(f"memory  {estimate.memory / 1e9:8.2f} GB of {estimate.memory_left / 1e9:.2f} GB left")
    say(f"disk    {estimate.disk / 1e9:8.2f} GB of {estimate.disk_free / 1e9:.2f} GB free")
    if estimate.directions:
        say(f"        {estimate.directions / 1e9:8.2f} GB of it to decompose no weight twice")
    analyze, compress = estimate.analyze_seconds, estimate.compress_seconds
    say(f"time    {analyze:8.0f} s to analyse the weights, {compress:.0f} s to factor them")
    say("Times are within a factor of two, and leave out forward passes, export and healing.")


def show_report(report: Report, as_json: bool) -> None:
    """What was measured."""
    from lowrank.report.terminal.tables import files_table, report_table, sets_table, tasks_table

    if as_json:
        print_json(report.to_json())
    else:
        print_table(report_table(report))
        if report.latency:
            print_table(files_table(report))
        if report.quality and report.quality.sets:
            print_table(sets_table(report.quality))
        if report.tasks:
            print_table(tasks_table(report))
        notes(report.notes)
        if report.quality and report.quality.headline:
            say(report.quality.headline)
        for sentence in (*report.unfit, *([report.take] if report.take else [])):
            say(sentence)


def complain_of(report: Report) -> bool:
    """Say what went wrong with the model, and with the last attempt to heal it; whether anything did."""
    for problem in report.last_problems:
        complain(problem)
    return bool(report.last_problems)


def show_trade_off(predicted: TradeOff, run: Path, as_json: bool) -> None:
    """What each budget is predicted to lose."""
    from lowrank.report.terminal.comparison import trade_off_table

    if as_json:
        print_json(predicted.to_json())
        return
    print_table(trade_off_table(predicted))
    say(f"Written to {run / predicted.file}, for the page of the run.")


def show_files(run: Path) -> None:
    """The files of a run, with their sizes."""
    say(f"Files in {run}:")
    for path in sorted(path for path in run.iterdir() if not path.name.startswith(".")):
        size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
        say(f"  {path}{'/' if path.is_dir() else ''}  {size:,} bytes")
