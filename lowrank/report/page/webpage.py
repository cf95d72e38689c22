"""`report.html`: one file that a browser shows without a network, made from the facts of a run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lowrank.artifacts.files import atomic
from lowrank.core.match import stem
from lowrank.core.prediction import is_measured
from lowrank.core.verdict import forecast_sentences
from lowrank.core.weight import Skip
from lowrank.report.fidelity import MEANING, columns_of_sets
from lowrank.report.page import drawings, sweep_plot
from lowrank.report.page.headline import (
    cards_of,
    comparison_of,
    quality_of,
    short,
    shown,
    summary_of,
    tasks_of,
)
from lowrank.report.page.heatmap import SHADES
from lowrank.report.page.page_data import PageData
from lowrank.report.page.positions import row_labels
from lowrank.report.page.spectra import ENERGIES, ShownWeight
from lowrank.report.page.svg import percent, power
from lowrank.report.shipped import columns_of_files
from lowrank.report.terminal.terminal import harmless
from lowrank.results.parts import Provenance

FOLDER = Path(__file__).parent
SPECTRA, ROWS, SKIPS = 320, 800, 400
"""Drawn and listed at most, so that the page of any model stays below 2 MB."""
SECTIONS = (
    ("overview", "Overview"),
    ("ranks", "Ranks"),
    ("spectra", "Spectra"),
    ("tradeoff", "Trade-off"),
    ("layers", "Layers"),
    ("left", "Left as it is"),
    ("made", "How it was made"),
)


@dataclass(frozen=True, slots=True)
class HealingFigure:
    """One healing, drawn."""

    picture: Markup
    caption: str


def write_page(path: Path, facts: PageData) -> None:
    """Write the page, whole or not at all.

    Raises:
        ArtifactError: if it cannot be written.
    """
    content = rendered(facts)
    with atomic(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def rendered(facts: PageData) -> str:
    """The page of a run."""
    # Names come from model files: every text is made harmless, then escaped.
    loader = FileSystemLoader(FOLDER)
    environment = Environment(
        loader=loader,
        autoescape=True,
        finalize=_harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (FOLDER / "script.js").read_text(encoding="utf-8")
    report, drawn = facts.report, evenly(facts.weights, SPECTRA)
    floor = drawings.floor_of(facts.weights)
    with_data = any(weight.activation for weight in facts.weights)
    return environment.get_template("page.html").render(
        facts=facts,
        report=report,
        summary=summary_of(facts),
        unfit=facts.report.unfit if facts.report else forecast_sentences(facts.analysis.forecast),
        problems=_problems(facts),
        cards=cards_of(facts),
        sections=SECTIONS,
        comparison=comparison_of(facts),
        files=shown(columns_of_files(report)) if report else ([], []),
        take=report.take if report else None,
        quality=quality_of(facts),
        tasks=tasks_of(facts),
        sets=shown(columns_of_sets(report and report.quality)),
        meaning=MEANING.get((report and report.quality and report.quality.kind) or "", ""),
        largest=max((max(part.before, part.after or 0) for part in facts.parts), default=1) or 1,
        healings=_healings(facts),
        shades=SHADES,
        with_data=with_data,
        floor=power(floor),
        key=drawings.key_of_spectra(with_data, any(weight.choice for weight in facts.weights)),
        blocks=_blocks(drawn),
        left_out_spectra=len(facts.weights) - len(drawn),
        spectrum=lambda weight: drawings.spectrum(weight, floor),
        of_output=is_measured(facts.analysis),
        trade_off=facts.trade_off and drawings.trade_off(facts.trade_off, facts.chosen),
        sweep=facts.sweep and sweep_plot.panels(facts.sweep.points, facts.sweep.task["metric"]),
        sweep_key=sweep_plot.legend(facts.sweep.points) if facts.sweep else [],
        energies=[f"{100 * energy:.0f}" for energy in ENERGIES],
        rows=facts.weights[:ROWS],
        left_out_rows=max(len(facts.weights) - ROWS, 0),
        skips=_skips(facts.analysis.skips),
        skip_count=len(facts.analysis.skips),
        skip_params=sum(math.prod(skip.shape) for skip in facts.analysis.skips),
        **_origin(facts),
        short=short,
        percent=percent,
        stem=stem,
        count=math.prod,
        breakable=breakable,
        data=in_script([_readout(weight) for _, members in _blocks(drawn) for weight in members]),
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8") + (sweep_plot.STYLE if facts.sweep else "")),
        script=Markup(script),
        # The only script that may run; it stands between two line ends.
        script_hash=base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode(),
    )


def _origin(facts: PageData) -> dict[str, Any]:
    """How the run was made."""
    return {
        "command": command_of(facts.provenance),
        "hashes": _hashes(facts),
        "versions": list((facts.provenance.versions or {}).items()),
        "settings": _settings(facts.analysis.settings),
        "seconds": _seconds(facts.report.seconds if facts.report else {}),
    }


def _harmless(value: Any) -> Any:
    return harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def breakable(name: str) -> Markup:
    """A name that may be broken after its dots and lines."""
    return Markup("").join(
        Markup("{}<wbr>").format(piece) if piece in "._/" else escape(piece) for piece in _pieces(harmless(name))
    )


def _pieces(name: str) -> list[str]:
    pieces = [""]
    for letter in name:
        if letter in "._/":
            pieces += [letter, ""]
        else:
            pieces[-1] += letter
    return [piece for piece in pieces if piece]


def in_script(content: Any) -> Markup:
    """JSON that can stand in a script element: no text in it ends the element or begins a comment."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def evenly(weights: Sequence[ShownWeight], most: int) -> list[ShownWeight]:
    """So many weights at most, evenly among all."""
    step = max(len(weights) / most, 1.0)
    return [weights[int(i * step)] for i in range(min(len(weights), most))]


def _blocks(weights: Sequence[ShownWeight]) -> list[tuple[str, list[ShownWeight]]]:
    """Weights by block, in the order of the model."""
    labels = row_labels(weight.place.row for weight in weights)
    blocks: dict[str, list[ShownWeight]] = {}
    for weight in weights:
        blocks.setdefault(labels[weight.place.row], []).append(weight)
    return list(blocks.items())


def _readout(weight: ShownWeight) -> dict[str, Any]:
    """What the pointer reads off a spectrum."""

    def shares(energies: Sequence[float]) -> list[float]:
        return [round(100 * share, 1) for share in energies]

    data = weight.activation
    return {
        "name": weight.name,
        "ranks": list(weight.ranks),
        "plain": shares(weight.plain.energies),
        "kept": shares(data.energies) if data else None,
    }


def _problems(facts: PageData) -> list[str]:
    return facts.report.last_problems if facts.report else []


def _healings(facts: PageData) -> list[HealingFigure]:
    drawn: list[HealingFigure] = []
    for entry in facts.report.healing if facts.report else ():
        unit = "steps" if entry.unit == "steps" else "minutes"
        picture = drawings.healing(entry.curve, entry.before, unit) if entry.before is not None else None
        if picture is None:
            continue
        words = f"{entry.steps} steps; held-out loss {entry.before:.4g} before"
        words += f", {entry.after:.4g} after" if entry.after is not None else ""
        drawn.append(HealingFigure(picture, words + ("." if entry.kept else "; not kept, as it is no better.")))
    return drawn


def _skips(skips: Sequence[Skip]) -> list[tuple[str, list[Skip], int, int]]:
    """What is left as it is by reason, the largest first: tensors, parameters, and how many are not listed."""
    by_reason: dict[str, list[Skip]] = {}
    for skip in skips:
        by_reason.setdefault(skip.reason, []).append(skip)
    each = max(SKIPS // max(len(by_reason), 1), 8)
    groups = [
        (reason, entries[:each], sum(math.prod(skip.shape) for skip in entries), max(len(entries) - each, 0))
        for reason, entries in by_reason.items()
    ]
    return sorted(groups, key=lambda group: -group[2])


def command_of(provenance: Provenance) -> str:
    """The command line as it can be typed again."""
    if not provenance.command:
        return ""
    first, *rest = map(str, provenance.command)
    program = ["python", "-m", "lowrank"] if Path(first).name == "__main__.py" else [Path(first).name]
    return shlex.join([*program, *rest])


def _hashes(facts: PageData) -> list[tuple[str, str]]:
    source, provenance = facts.analysis.source, facts.provenance
    hashes = [("model", source.get("fingerprint")), ("analysis", facts.analysis.fingerprint), ("plan", provenance.plan)]
    data = facts.analysis.settings.get("calibration")
    if isinstance(data, dict):
        hashes.append(("calibration data", data.get("hash")))
    hashes.append(("read from", source.get("path")))
    return [(label, value) for label, value in hashes if isinstance(value, str) and value]


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was asked for, all levels of it, without what is empty."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, dict):
            rows += [(f"{key}, {label}", words) for label, words in _settings(value)]
        elif isinstance(value, list | tuple):
            rows += [(key, ", ".join(map(str, value)))] if value else []
        elif value is not None and key != "hash":
            rows.append((key, f"{value:,}" if isinstance(value, int) else str(value)))
    return rows


def _seconds(seconds: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """Stages, the longest first."""
    longest = max(seconds.values(), default=0.0) or 1.0
    ordered = sorted(seconds.items(), key=lambda stage: -stage[1])
    return [(name, f"{value:,.1f} s", value / longest) for name, value in ordered if value >= 0.05]
