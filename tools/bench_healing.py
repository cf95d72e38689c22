"""What healing wins back: quality before and after, against minutes, on the data that one has and on other data.

    python tools/bench_healing.py --data DATA [--vit vit] [--gpt gpt] [--minutes 15] --output bench

DATA, `--vit` and `--gpt` are as for `bench_methods.py`. Each model is compressed without training, measured, healed in
a copy of its run, and measured again: after all the minutes at every keep ratio; at the middle one also after fewer
minutes, and after those on the built-in text and on data of another domain, on which it is then calibrated as well. The
table is written as it grows.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import subjects
from measured import Cell, Table, publish

import lowrank

SHORTER = (0.1, 0.3)
"""Shares of the minutes, for the curve; other data get the larger one."""


def rows_of(subject: subjects.Subject, keeps: list[float], minutes: float, work: Path) -> Iterator[list[Cell]]:
    """One row for each state of the model."""
    opened: Any = lowrank.open_model(subject.source)
    yield [subject.name, "dense", 1, None, *subject.measure(opened.module), None, None, None]
    middle, other = keeps[len(keeps) // 2], SHORTER[-1] * minutes
    curve = [share * minutes for share in SHORTER]
    runs = [("own data", subject.calib, keep, [*(curve if keep == middle else ()), minutes]) for keep in keeps]
    runs += [("built-in text", lowrank.Settings(), middle, [other])] if opened.tokenizer else []
    runs += [("other domain", subject.elsewhere, middle, [other])]
    for label, settings, share, times in runs:
        # In one folder, whose analysis serves all keep ratios.
        plain, healed = work / f"{subject.name}, {label}", work / "healed"
        lowrank.compress(subject.source, share, output=plain, settings=settings, latency=False)
        yield [subject.name, label, share, 0, *subject.measure(lowrank.load(plain)), None, None, None]
        for time in times:
            shutil.copytree(plain, healed)
            entry = lowrank.heal(healed, time, latency=False).healing[-1]
            found = subject.measure(lowrank.load(healed))
            shutil.rmtree(healed)
            told = (entry["after"] / entry["before"], entry["rate"], entry["steps"])
            yield [subject.name, label, share, time, *found, *told]


def table(subject: subjects.Subject, rows: list[list[Cell]]) -> Table:
    columns = {"model": "", "data": "", "keep": "g", "minutes": "g"} | dict(subject.columns)
    return Table(columns | {"held-out loss of before": ".3f", "rate": "g", "steps": ".0f"}, rows)


def main() -> None:
    parser = subjects.parser(__doc__, ("vit", "gpt"))
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.5, 0.3, 0.2])
    parser.add_argument("--minutes", type=float, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        for name, subject in subjects.asked(args, Path(work)):
            if name == "minilm":
                # All of its sentences, of which the calibration takes some from all over.
                whole = replace(subject.calib, calib=str(args.data / "stsb_train.tsv"))
                subject = replace(subject, calib=whole)
            rows: list[list[Cell]] = []
            for row in rows_of(subject, args.keeps, args.minutes, Path(work)):
                rows.append(row)
                print(publish(table(subject, rows), args.output, f"healing-{name}").splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
