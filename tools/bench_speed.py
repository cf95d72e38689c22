"""What a budget of speed gives: predicted against measured time, bytes and quality, types chosen with ranks.

    python tools/bench_speed.py --data DATA [--speeds 2.5 3 3.5 4 5] --output bench

DATA as for `bench_methods.py`. all-MiniLM-L6-v2 is calibrated on the built-in text alone. Operators are timed once for
shares of the time, and anew for each speed, whose plan is then tried. All results are made without healing, and then
all files are timed in turn in one process, on one thread, 1 x 128 tokens.
Above them stand the dense model and the dense model in int8.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from baselines import minilm_folder
from measured import Cell, Table, publish
from sentences import Judge, of_file

import lowrank
from lowrank.backends.onnx.save import file_size
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan
from lowrank.core.selection.timings import Timings
from lowrank.edge.target import Target
from lowrank.evaluate.latency import measure_latency
from lowrank.pipeline import bench_table, export
from lowrank.results.report import ONNX_FILE

SPEEDS = (2.5, 3.0, 3.5, 4.0, 5.0)
SHARES = (0.5, 0.35)
"""Of the dense model's time, in float32 alone."""
COLUMNS = {
    "": "",
    "keep": ".3f",
    "expected ms": ".2f",
    "ms": ".2f",
    "expected / measured": ".3f",
    "times as fast as dense": ".2f",
    "as dense int8": ".2f",
    "MB": ".1f",
    "STS-B dev Spearman": "figure",
    "retrieval, % of dense": ".1f",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--speeds", type=float, nargs="+", default=SPEEDS)
    parser.add_argument("--output", type=Path, default=Path("bench"))
    args = parser.parse_args()
    model = str(minilm_folder())
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        bench_table(model, table=work / "table.json")
        whole = Timings.from_json(json.loads((work / "table.json").read_text())).whole
        files = {name: export(model, work / name, target=Target(dtype=dtype)) for name, dtype in TYPES.items()}
        run, keeps, predicted = work / "run", dict[str, float](), {"dense": whole}
        lowrank.analyze(model, output=run)
        budgets = {f"--latency {share}": Budget.latency(share) for share in SHARES}
        budgets |= {f"--speedup {speed:g}": Budget.speedup(speed) for speed in args.speeds}
        for name, budget in budgets.items():
            # A speed of this machine has a table of its own, and a trial.
            table = work / "table.json" if budget.kind == "latency" else None
            lowrank.compress(None, budget, output=run, timings=table, latency=False, int8=False)
            files[name] = shutil.copytree(run, work / name) / ONNX_FILE
            plan = plan_of(run)
            keeps[name], predicted[name] = plan.keep_ratio, None if whole is None else (plan.share or 0) * whole
        opened: Any = lowrank.open_model(model)
        times = measure_latency(files, opened.signature, 1, 128)
        judge = Judge(args.data, of_file(files["dense"]))
        rows = [row(name, path, times, keeps, predicted, judge) for name, path in files.items()]
        print(publish(Table(COLUMNS, rows), args.output, "speed"))


TYPES: dict[str, Any] = {"dense": "float32", "dense int8": "int8"}


def plan_of(run: Path) -> Plan:
    """The plan of a run."""
    from lowrank.pipeline.run.read import read_run

    return read_run(run)[1]


def row(
    name: str, path: Path, times: dict[str, float], keeps: dict[str, float], predicted: dict[str, Any], judge: Judge
) -> list[Cell]:
    """What was measured of one file."""
    found, expected = judge.by_name(of_file(path)), predicted.get(name)
    expected = None if expected is None else expected / 1e3
    ms = times[name]
    scores = [found[key] for key in ("STS-B dev Spearman", "retrieval, % of dense")]
    ratios = [None if expected is None else expected / ms, times["dense"] / ms, times["dense int8"] / ms]
    return [name, keeps.get(name, 1.0), expected, ms, *ratios, file_size(path) / 1e6, *scores]


if __name__ == "__main__":
    main()
