"""A checkpoint larger than the memory that it may take: analysed, compressed, loaded again. Are its ranks found?

    python tools/bench_scale.py --checkpoint bench/llama-7b --memory 4GB --output bench/scale
    python tools/bench_scale.py --weight 4096

The first writes `tools/make_checkpoint.py`'s checkpoint if it is not there, and runs the commands that a user would,
each in a process of its own whose highest resident memory is printed. The second times one square weight of that size
against `torch.linalg.svd`, in turn, and compares what both keep.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from make_checkpoint import known_ranks, parser, write
from measured import Cell, publish
from measured import Table as Numbers
from rich.console import Console
from rich.table import Table

COMMAND = str(Path(sys.executable).with_name("lowrank"))
LOADED = """
import sys, torch, lowrank
model = lowrank.load(sys.argv[1])
with torch.no_grad():
    found = model(torch.arange(8)[None]).logits
assert torch.isfinite(found.float()).all()
print(sum(parameter.numel() for parameter in model.parameters()))
"""


def measured(command: list[str]) -> tuple[float, int, str]:
    """Seconds, the highest resident memory of the process in bytes, and what it wrote."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, output


def scale(given: argparse.Namespace) -> None:
    shape = parser().parse_args([str(given.checkpoint), *given.shape])
    if not (given.checkpoint / "config.json").exists():
        write(shape)
    run = given.output
    bounded = ["--stream", "--memory", given.memory, *(["--no-directions"] if given.no_directions else [])]
    chosen = ["--structures", given.structures] if given.structures else []
    rows: list[list[Cell]] = []
    stages = {
        "`lowrank analyze`": [COMMAND, "analyze", str(given.checkpoint), "-o", str(run), "--calib", "none", *bounded],
        "`lowrank compress --budget 0.5`": [COMMAND, "compress", "--budget", "0.5", "-o", str(run), *bounded, *chosen],
        "`lowrank.load` and eight tokens": [sys.executable, "-c", LOADED, str(run)],
    }
    for name, command in stages.items():
        seconds, peak, _ = measured(command)
        rows.append([name, seconds, peak / 1e9])
        print(name, f"{seconds:.0f} s, {peak / 1e6:,.0f} MB", flush=True)
    publish(Numbers({"": "", "seconds": ".0f", "peak memory": ".1f GB"}, rows), run.parent, "scale")
    known = known_ranks(shape.layers, shape.hidden, shape.intermediate, shape.seed)
    groups = json.loads((run / "plan.json").read_text())["groups"]
    off = np.array([group["rank"] - known[group["name"]] for group in groups if group["structure"] != "dense"])
    report = json.loads((run / "report.json").read_text())
    print(
        f"{len(off)} of {len(known)} weights factored; rank found minus rank made: {off.min()} to {off.max()}, "
        f"{(off == 0).mean():.0%} the same"
    )
    print(
        f"keep ratio {report['targets']['keep_ratio']:.4f}, bytes {report['model']['bytes_before']:,} -> "
        f"{report['model']['bytes_after']:,}; relative error of truncation {report['error']['relative']:.5f}, of the "
        f"cast {report['error']['cast_relative']:.5f}"
    )
    ranks: list[list[Cell]] = [
        ["billion parameters", report["model"]["params_before"] / 1e9],
        ["GB", report["model"]["bytes_before"] / 1e9],
        ["known ranks", len(known)],
        ["share found exactly", float((off == 0).mean())],
        ["furthest above", int(off.max())],
        ["lost by truncation", report["error"]["relative"]],
        ["lost by rounding", report["error"]["cast_relative"]],
    ]
    publish(Numbers({"what": "", "value": "g"}, ranks), run.parent, "scale-ranks")


def weight(size: int, repeats: int, folder: Path) -> None:
    """Times and accuracy of one weight in both types, in turn."""
    import scipy.fft
    import torch

    from lowrank.core.linalg.eigen import singular_values
    from lowrank.core.truncation.directions import plain_truncation

    rng = np.random.default_rng(0)
    spectrum = (1.0 + np.arange(size)) ** -0.5
    exact: Any = scipy.fft.idctn(np.diag(spectrum)[rng.permutation(size)], norm="ortho")
    exact *= rng.choice([-1.0, 1.0], size)
    rank = size // 4
    best = float(np.sqrt(np.square(spectrum[rank:]).sum()))

    def excess(left: np.ndarray, right: np.ndarray) -> float:
        return float(np.linalg.norm(exact - left.astype(np.float64) @ right.astype(np.float64))) / best - 1

    table = Table(title=f"{size} x {size}, {torch.get_num_threads()} threads, medians of {repeats}")
    for column in (
        "",
        "seconds",
        "torch.linalg.svd /",
        f"error at rank {size // 4} above the best",
        "largest error of a value",
    ):
        table.add_column(column, justify="left" if not column else "right")
    gained: dict[str, list[Cell]] = {
        "spectrum": ["spectrum"],
        "factors": ["factors of a quarter of the rank"],
    }
    for dtype in (np.float32, np.float64):
        matrix = exact.astype(dtype)
        runs: dict[str, Callable[[], Any]] = {
            "torch.linalg.svd": lambda m=matrix: torch.linalg.svd(torch.from_numpy(m), full_matrices=False),
            "spectrum": lambda m=matrix: singular_values(m),
            "factors": lambda m=matrix: plain_truncation(m, rank),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        found: dict[str, Any] = {}
        for _ in range(repeats):
            for name, run in runs.items():
                start = time.perf_counter()
                found[name] = run()
                times[name].append(time.perf_counter() - start)
        (u, s, v), values, made = found.values()
        cut = ((u[:, :rank] * s[:rank]).numpy(), v[:rank].numpy())
        middle = {name: float(np.median(each)) for name, each in times.items()}
        off = {"torch.linalg.svd": np.abs(s.numpy() - spectrum).max(), "spectrum": np.abs(values - spectrum).max()}
        lost = {"torch.linalg.svd": excess(*cut), "factors": excess(made.left, made.right)}
        for name, seconds in middle.items():
            ratio = middle["torch.linalg.svd"] / seconds
            if name in gained:
                gained[name].append(ratio)
            table.add_row(
                f"{name}, {np.dtype(dtype).name}",
                f"{seconds:.2f}",
                f"{ratio:.2f}",
                f"{lost[name]:.1e}" if name in lost else "",
                f"{off[name]:.1e}" if name in off else "",
            )
    Console(width=140).print(table)
    numbers = Numbers({"": "", "float32": ".1f", "float64": ".1f"}, list(gained.values()))
    publish(numbers, folder, f"weight-{size}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--checkpoint", type=Path)
    options.add_argument("--output", type=Path, default=Path("bench/scale"))
    options.add_argument("--memory", default="4GB")
    options.add_argument("--structures", help="as for lowrank compress")
    options.add_argument("--no-directions", action="store_true", help="decompose each weight twice")
    options.add_argument("--weight", type=int, help="the size of one weight")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("shape", nargs="*", help="after --, as for make_checkpoint.py")
    given = options.parse_args()
    if given.weight:
        weight(given.weight, given.repeats, given.output.parent)
    if given.checkpoint:
        scale(given)


if __name__ == "__main__":
    main()
