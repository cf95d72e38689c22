"""Bytes and milliseconds on the edge: dense and compressed all-MiniLM-L6-v2, in every type, as one table.

    python tools/bench_edge.py --data DATA [--heal 15 | --dense] --output bench

DATA holds stsb_train.tsv, stsb_dev.tsv, sst2_dev.tsv and cisi, a collection in the layout of BEIR. Every file is run by
plain ONNX Runtime with one thread: Spearman on STS-B dev, nDCG@10 of retrieval as a share of the dense model's, bytes,
multiply-adds a token, medians of milliseconds at four shapes, all files in turn, and the memory that a fresh process
needs beyond onnxruntime itself. The baselines are the dense model for ONNX Runtime (`--profile ort`), in int8 as this
tool and as ONNX Runtime itself round it, and a smaller model (`baselines.py`). Runs are kept in bench/edge, and not
made again. With --dense there are no runs, and the types of the dense model are a table of their own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import subjects
from baselines import Variant, baselines, rounded
from measured import Cell, Table, publish
from sentences import RETRIEVAL, SIMILARITY, Judge, of_file

import lowrank
from lowrank.backends import open_model
from lowrank.backends.inputs import spread
from lowrank.backends.onnx.save import file_size
from lowrank.calibrate.data import load_calibration
from lowrank.core.budget import Budget
from lowrank.core.selection.knapsack import Knapsack
from lowrank.edge import standalone
from lowrank.edge.graph_file import fit_file
from lowrank.edge.target import Dtype, Target
from lowrank.evaluate.latency import measure_latency

SHAPES = ((1, 1), (1, 16), (1, 128), (8, 64))
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "int8", "int4", "int3", "int2", "nbits4")
TOKENS = 16384
TIMED = {
    "": "",
    "predicted ms": ".2f",
    "ms": ".2f",
    "times dense": ".1f",
    "times dense rounded": ".1f",
    "keep": ".3f",
    "cosine to dense": ".2f",
}
BY_TIME = {"--latency 0.37": "time-0.37", "--latency 0.5 --quantize int8": "time-0.5-of-int8"}


def pruned(module: Any) -> Any:
    """Half of every projection's numbers set to zero, the smallest ones."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2 and ".layer." in name:
                bound = parameter.abs().flatten().kthvalue(parameter.numel() // 2).values
                parameter[parameter.abs() <= bound] = 0.0
    return module


@dataclass(frozen=True)
class Row:
    """A variant: its file, multiply-adds a token, and the name that it has in the table."""

    name: str
    path: Path
    macs: int | None = None
    baseline: Variant | None = None
    """Another model, whose multiply-adds are not counted."""


def fitted(name: str, backend: Any, macs: int, work: Path, dtype: Dtype, feeds: Any = (), plain: bool = False) -> Row:
    """A model of one type, for ONNX Runtime."""
    label = f"{name} {dtype}" + (", only rounded" if plain else "")
    path = work / label.replace(" ", "-") / "model.onnx"
    path.parent.mkdir()
    backend.write_onnx(path)
    fit_file(path, Target(profile="ort", dtype=dtype), backend.signature, feeds, plain=plain)
    return Row(label, path, macs)


def dense_rows(source: str, work: Path) -> list[Row]:
    """The dense model in every type, also as ONNX Runtime rounds it, and with half of its weights zero."""
    dense: Any = open_model(source)
    macs = sum(weight.params for weight in dense.weights if weight.role == "projection")
    rows = [fitted("dense", dense, macs, work, dtype) for dtype in DTYPES]
    zeros = open_model(pruned(open_model(source).module))  # pyright: ignore[reportAttributeAccessIssue]
    return [
        *rows,
        Row("dense int8, by onnxruntime", rounded(rows[0].path, work / "dense-ort" / "model.onnx"), macs),
        *(Row(b.name, b.file, baseline=b) for b in baselines(work / "instead") if b.file and b.other),
        fitted("half of the weights zero", zeros, macs, work, "float32"),
    ]


def runs_of(subject: subjects.Subject, minutes: float, folder: Path) -> dict[str, Path]:
    """Compressed models by their names in the table; those that are there from an earlier run are not made again."""
    # Structures that add no operators, in widths that are good for vectors.
    plain = Knapsack(structures=("product", "neurons"), multiple=8)
    wanted = {
        "keep 0.3": (Budget.params(0.3), Target(profile="ort")),
        "keep 0.3 of heads and neurons": (Budget.params(0.3), Target(profile="ort")),
        "keep 0.8": (Budget.params(0.8), Target(profile="ort")),
        "8 MB": (Budget.size(8e6), Target(profile="ort")),
        "6 MB": (Budget.size(6e6), Target(profile="ort")),
        "time 0.37": (Budget.latency(0.37), Target(profile="ort")),
        "time 0.5 of int8": (Budget.latency(0.5), Target(profile="ort", dtype="int8")),
    }
    found: dict[str, Path] = {}
    analyses: dict[tuple[str, ...], Path] = {}
    for name, (budget, target) in wanted.items():
        targets = ("projections", "embeddings") if budget.kind == "size" else ("projections",)
        run = found[name] = folder / name.replace(" ", "-")
        if not (run / "report.json").exists():
            for path in analyses.get(targets, run).glob("analysis.*"):
                run.mkdir(exist_ok=True)
                shutil.copyfile(path, run / path.name)
            settings = replace(subject.calib, targets=targets)
            selector = plain if "heads" in name else None
            # Only budgets of time are held against a measured time.
            lowrank.compress(
                subject.source,
                budget,
                output=run,
                settings=settings,
                target=target,
                selector=selector,
                latency=budget.kind == "latency",
            )
        analyses[targets] = run
        if minutes and budget.kind == "size":
            healed = found[f"{name}, healed"] = folder / f"{run.name}-healed"
            if not (healed / "report.json").exists():
                shutil.copytree(run, healed, dirs_exist_ok=True)
                lowrank.heal(healed, minutes, latency=False)
    return found


def run_rows(name: str, run: Path, subject: subjects.Subject, work: Path) -> list[Row]:
    """A run's own file; of one by parameters, its model in every type, or at 0.8 in those that should not be slower."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    macs = report["model"]["macs_after"]
    if report["budget"]["kind"] != "params":
        return [Row(name, run / "model.onnx", macs)]
    dense: Any = open_model(subject.source)
    data = subject.calib
    calibration = load_calibration(dense, Path(str(data.calib)), data.column, data.samples, data.mixed)
    assert calibration is not None
    small: Any = calibration.backend.saved_in(run, dict)
    feeds = spread(calibration.fit, TOKENS)
    if report["budget"]["limit"] > 0.5:
        return [fitted(name, small, macs, work, dtype, feeds) for dtype in ("float32", "int8")]
    rows = [fitted(name, small, macs, work, dtype, feeds) for dtype in DTYPES]
    if "heads" in name:
        return rows
    return rows + [fitted(name, small, macs, work, dtype, feeds, plain=True) for dtype in ("int8", "int4")]


def timed(name: str, run: Path) -> list[Cell]:
    """What the report of a budget of time says."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    latency = report["latency"]
    took, rounded = latency["compressed_ms"], latency.get("dense_rounded_ms")
    gained = [latency["dense_ms"] / took, rounded / took if rounded else None]
    return [name, latency["predicted_ms"], took, *gained, report["targets"]["keep_ratio"], report["quality"]["cosine"]]


def memory(path: Path) -> float:
    """MB that a fresh process has at its peak, beyond what it has before it opens the model."""
    command = [sys.executable, str(standalone.__file__), "--model", str(path), "--time", "3"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return told["peak_mb"] - told["before_mb"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--heal", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--dense", action="store_true", help="only the dense model, in every type")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("bench"))
    given = parser.parse_args()
    folder = given.output / "edge"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        subject = subjects.minilm(given.data, folder)
        rows = dense_rows(subject.source, work)
        for name, run in ({} if given.dense else runs_of(subject, given.heal, folder)).items():
            rows += run_rows(name, run, subject, work)
        signature: Any = open_model(subject.source).signature
        files = {row.name: row.path for row in rows}
        times = {shape: measure_latency(files, signature, *shape, rounds=given.rounds) for shape in SHAPES}
        judge = Judge(given.data, of_file(rows[0].path))
        columns = {"all-MiniLM-L6-v2": "", "Spearman": ".4f", RETRIEVAL: ".1f", "MB": ".2f", "M multiply-adds": ".2f"}
        columns |= {f"{b} x {s}": ".2f" for b, s in SHAPES} | {"peak MB": ".0f"}
        lines: list[list[Cell]] = []
        for row in rows:
            found = judge.by_name(row.baseline.embed if row.baseline else of_file(row.path))
            took = [times[shape][row.name] for shape in SHAPES]
            macs = row.macs / 1e6 if row.macs else None
            score = (found[SIMILARITY], found[RETRIEVAL])
            lines.append([row.name, *score, file_size(row.path) / 1e6, macs, *took, memory(row.path)])
            title = "edge-dense" if given.dense else "edge"
            print(publish(Table(columns, lines), given.output, title).splitlines()[-1], flush=True)
        if given.dense:
            return
        publish(Table(TIMED, [timed(name, folder / run) for name, run in BY_TIME.items()]), given.output, "edge-time")


if __name__ == "__main__":
    main()
