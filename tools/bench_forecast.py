"""What `analyze` foretells against what is then measured, on every model of the bench.

    python tools/bench_forecast.py --data DATA [--stories stories260K] [--vit vit] [--gpt gpt] --output bench

DATA and the models are as for `bench_methods.py`; `bench_real.py` has the same columns for models from packages. What
is foretold is the fidelity of factors as they are cut; measured is that of the result, which is refitted. Both are
those of the worst set of each. "agree" says whether both call the result fit for use, or both do not.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import subjects
from measured import Cell, Table, publish

import lowrank
from lowrank.artifacts import load_analysis
from lowrank.core.forecast import FLOOR, foretold_at

KEEPS = (0.9, 0.8, 0.6, 0.5, 0.3)
COLUMNS = {
    "model": "",
    "keep": "g",
    "foretold": ".3f",
    "on": "",
    "measured": ".3f",
    "on the set": "",
    "agree": "",
}


def rows_of(subject: subjects.Subject, keeps: tuple[float, ...], run: Path) -> Iterator[list[Cell]]:
    """One row for each keep ratio, all of one analysis."""
    for keep in keeps:
        report = lowrank.compress(subject.source, keep, output=run, settings=subject.calib, latency=False)
        point, quality = foretold_at(load_analysis(run).forecast, keep), report.quality
        if point is None or quality is None or quality.fidelity is None:
            continue
        foretold, measured = point.fidelity[point.worst], quality.fidelity
        agree = "yes" if (foretold < FLOOR) == (measured < FLOOR) else "no"
        yield [subject.name, keep, foretold, point.worst, measured, quality.worst, agree]


def main() -> None:
    parser = subjects.parser(__doc__)
    parser.add_argument("--keeps", type=float, nargs="+", default=KEEPS)
    args = parser.parse_args()
    rows: list[list[Cell]] = []
    with tempfile.TemporaryDirectory() as place:
        for name, subject in subjects.asked(args, Path(place)):
            for row in rows_of(subject, tuple(args.keeps), Path(place) / "runs" / name):
                rows.append(row)
                print(publish(Table(COLUMNS, rows), args.output, "forecast").splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
