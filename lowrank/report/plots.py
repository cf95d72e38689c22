"""The plots of a page as files, PNG and SVG, for papers and slides. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowrank.artifacts import staged
from lowrank.errors import MissingExtra
from lowrank.report.page.drawings import floor_of
from lowrank.report.page.page_data import PageData
from lowrank.report.page.positions import row_labels
from lowrank.report.page.spectra import ENERGIES, Line, ShownWeight
from lowrank.report.page.sweep_plot import sweep_file
from lowrank.report.terminal.terminal import harmless
from lowrank.results.forecast import Prediction, TradeOff
from lowrank.results.parts import HealingResult

INK, MUTED, PALE, ACCENT, SOFT = "#1b2127", "#58626d", "#b9bfc6", "#1b66a3", "#dbe9f5"
RAMP = "cividis"
"""Made to be read by people of any colour vision (Nunez, Anderton and Renslow 2018)."""
MARKS = "os^"
FORMATS = ("png", "svg")
ACROSS = 6
"""Spectra in a row."""


def check_plots() -> None:
    """Check that plots can be drawn, before hours of work end in one.

    Raises:
        MissingExtra: if matplotlib is not installed.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise MissingExtra("--plots draws with matplotlib, which is not installed; pip install 'lowrank[plot]'")


def write_plots(facts: PageData, folder: Path) -> list[Path]:
    """Every plot as PNG and SVG, and that of a sweep as SVG, in a folder; the paths.

    Raises:
        MissingExtra: if matplotlib is not installed.
        ArtifactError: if they cannot be written.
    """
    check_plots()
    import matplotlib

    # Texts of an SVG stay text, names of weights are no formulas, and the same numbers give the same file.
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "lowrank",
        "text.parse_math": False,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "text.color": INK,
    }
    written: list[Path] = []
    with matplotlib.rc_context(style), staged(folder) as stage:
        for name, figure in _figures(facts):
            # Laid out once for both formats, which takes longer than all else.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            for suffix in FORMATS:
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(stage / f"{name}.{suffix}", dpi=160, metadata=metadata)
                written.append(folder / f"{name}.{suffix}")
        if facts.sweep is not None:
            picture = sweep_file(facts.sweep.points, facts.sweep.task["metric"])
            (stage / "sweep.svg").write_text(picture, encoding="utf-8")
            written.append(folder / "sweep.svg")
    return written


def _figures(facts: PageData) -> Iterator[tuple[str, Any]]:
    """Each by the name of its files, drawn when it is asked for."""
    labels = row_labels(weight.place.row for weight in facts.weights)
    blocks: dict[str, list[ShownWeight]] = {}
    for weight in facts.weights:
        blocks.setdefault(labels[weight.place.row], []).append(weight)
    floor, digits = floor_of(facts.weights), len(str(len(blocks)))
    for number, (label, members) in enumerate(blocks.items()):
        yield f"spectra-{number:0{digits}}", _spectra(label, members, floor)
    yield "ranks", _ranks(facts)
    yield "parameters", _parameters(facts)
    if facts.trade_off is not None:
        yield "tradeoff", _tradeoff(facts.trade_off, facts.chosen)
    for number, entry in enumerate(facts.report.healing if facts.report else ()):
        if entry.curve:
            yield f"healing-{number}", _healing(entry)


def _subplots(rows: int = 1, columns: int = 1, size: tuple[float, float] = (5.2, 3.4)) -> tuple[Any, Any]:
    """A figure of its own, which no window shows and nothing keeps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=True)


def _spectra(label: str, members: list[ShownWeight], floor: float) -> Any:
    rows = math.ceil(len(members) / ACROSS)
    columns = min(len(members), ACROSS)
    figure, grid = _subplots(rows, columns, (2.3 * columns, 2.0 * rows + 0.4))
    figure.suptitle(harmless(label), x=0.01, ha="left", fontsize=11)
    for axes in grid.ravel()[len(members) :]:
        axes.set_axis_off()
    for axes, weight in zip(grid.ravel(), members, strict=False):
        chosen = weight.choice.rank if weight.choice else None
        if chosen is not None:
            axes.axvspan(0, chosen, color=SOFT, linewidth=0)
            axes.axvline(chosen, color=INK, linewidth=1)
        axes.axvline(weight.break_even, color=MUTED, linewidth=0.8, linestyle=":")
        _line(axes, weight, weight.plain, MUTED, "--", "plain")
        if weight.activation is not None:
            _line(axes, weight, weight.activation, ACCENT, "-", "data")
        axes.set(yscale="log", ylim=(floor, 1.4), xlim=(0, weight.full_rank))
        _logarithmic(axes, (1.0,))
        axes.set_title(harmless(weight.place.kind), fontsize=8, loc="left")
        words = weight.choice.words if weight.choice else f"{weight.rows} x {weight.cols}"
        axes.set_xlabel(words, fontsize=7, color=MUTED)
        axes.tick_params(labelsize=7)
    lines, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower left", ncols=len(names), frameon=False, fontsize=7)
    return figure


def _logarithmic(axes: Any, factors: tuple[float, ...]) -> None:
    """Ticks at these multiples of powers of ten, as plain numbers: texts here are no formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.yaxis.set_major_locator(LogLocator(subs=factors))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _line(axes: Any, weight: ShownWeight, line: Line, colour: str, dashes: str, label: str) -> None:
    axes.plot(weight.ranks, line.values, color=colour, linestyle=dashes, linewidth=1.3, label=label)
    for (rank, value), shape, energy in zip(line.marks, MARKS, ENERGIES, strict=True):
        name = f"{energy:.0%} of energy" if label == "plain" else None
        axes.plot([rank], [value], shape, color=colour, markerfacecolor="white", markersize=4, label=name)


def _ranks(facts: PageData) -> Any:
    import numpy as np

    grid = facts.grid
    shares = [[cell.share if cell else np.nan for cell in cells] for _, cells in grid.rows]
    size = (1.6 + 0.85 * len(grid.columns), 1.4 + 0.32 * len(grid.rows))
    figure, ((axes,),) = _subplots(size=size)
    image = axes.imshow(np.array(shares), cmap=RAMP, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(grid.columns)), [harmless(c) for c in grid.columns], rotation=35, ha="right", fontsize=7)
    axes.set_yticks(range(len(grid.rows)), [harmless(label) for label, _ in grid.rows], fontsize=7)
    for i, (_, cells) in enumerate(grid.rows):
        for j, cell in enumerate(cells):
            if cell is not None:
                # Cividis runs from dark to bright.
                colour = "white" if cell.share < 0.5 else "black"
                axes.text(j, i, cell.number, ha="center", va="center", fontsize=7, color=colour)
    what = "parameters kept" if facts.report else "rank at 95 % of the energy, of the full rank"
    figure.colorbar(image, ax=axes, label=what, fraction=0.05)
    return figure


def _parameters(facts: PageData) -> Any:
    figure, ((axes,),) = _subplots(size=(5.2, 0.6 + 0.5 * len(facts.parts)))
    places = range(len(facts.parts))
    axes.barh(
        [p - 0.2 for p in places], [part.before / 1e6 for part in facts.parts], 0.36, color="#b9bfc6", label="dense"
    )
    if facts.plan is not None:
        now = [(part.after or 0) / 1e6 for part in facts.parts]
        axes.barh([p + 0.2 for p in places], now, 0.36, color=ACCENT, label="compressed")
        axes.legend(frameon=False)
    axes.set_yticks(places, [part.name for part in facts.parts])
    axes.invert_yaxis()
    axes.set_xlabel("million parameters")
    return figure


def _tradeoff(trade_off: TradeOff, chosen: Prediction | None) -> Any:
    figure, ((axes,),) = _subplots()
    points = trade_off.points
    axes.plot([p.keep for p in points], [max(p.error, 1e-9) for p in points], "o-", color=ACCENT, markersize=3)
    if chosen is not None:
        axes.plot([chosen.keep], [max(chosen.error, 1e-9)], "o", color=INK, markersize=7, label="chosen")
        axes.legend(frameon=False)
    what = "output" if trade_off.of_output else "weights"
    axes.set(yscale="log", xlim=(0, 1), xlabel="parameters kept", ylabel=f"predicted relative error of the {what}")
    _logarithmic(axes, (1.0, 2.0, 5.0))
    return figure


def _healing(entry: HealingResult) -> Any:
    figure, ((axes,),) = _subplots()
    work, loss = zip(*entry.curve, strict=True)
    axes.plot(work, loss, "o-", color=ACCENT, markersize=3)
    axes.axhline(entry.before, color=MUTED, linestyle=":", label="before")
    axes.legend(frameon=False)
    axes.set(xlabel="steps" if entry.unit == "steps" else "minutes", ylabel="held-out loss")
    return figure
