"""What healing wins back: quality before and after, against minutes, on the data that one has and on other data.

    python tools/bench_healing.py --data DATA [--vit vit] [--gpt gpt] [--minutes 15] --output bench

DATA, `--vit` and `--gpt` are as for `bench_methods.py`. Each model is compressed without training, measured, healed in
a copy of its run, and measured again: after all the minutes at every keep ratio, of models that read text both without
data and with their own; at the middle keep ratio also after fewer minutes, and after those on data of another domain,
on which it is then calibrated as well. The table is written as it grows.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import subjects
from measured import Cell, Table, measured_before, publish

import lowrank

Rows = Iterator[list[Cell]]
TOLD = {"held-out loss of before": ".3f", "rate": "g", "steps": ".0f"}
SHORTER = (0.1, 0.3)
"""Shares of the minutes, for the curve; other data get the larger one."""


@dataclass(frozen=True)
class Start:
    """A compressed model that is healed: what it is calibrated and healed on, its keep ratio, and for how long."""

    label: str
    settings: lowrank.Settings
    keep: float
    minutes: list[float]


def starts(subject: subjects.Subject, keeps: list[float], minutes: float, *, reads_text: bool) -> list[Start]:
    """All of a subject; the built-in text first, which is what one gets without data."""
    middle, other = keeps[len(keeps) // 2], SHORTER[-1] * minutes
    curve = [share * minutes for share in SHORTER]
    builtin = [Start("built-in text", lowrank.Settings(), keep, [minutes]) for keep in keeps if reads_text]
    own = [
        Start("own data", subject.calib, keep, [*(curve if keep == middle else ()), minutes])
        for keep in sorted(keeps, key=lambda keep: keep != middle)
    ]
    return [*builtin, *own, Start("other domain", subject.elsewhere, middle, [other])]


def rows_of(subject: subjects.Subject, starts: list[Start], known: Container[list[Cell]], work: Path) -> Rows:
    """One row for each state of the model that is not known."""
    for start in starts:
        # In one folder, whose analysis serves all keep ratios.
        plain, healed = work / f"{subject.name}, {start.label}", work / "healed"
        head: list[Cell] = [subject.name, start.label, start.keep]
        times = [time for time in start.minutes if [*head, time] not in known]
        if times:
            lowrank.compress(subject.source, start.keep, output=plain, settings=start.settings, latency=False)
        if times and [*head, 0] not in known:
            yield [*head, 0, *subject.measure(lowrank.load(plain)), None, None, None]
        for time in times:
            shutil.copytree(plain, healed)
            entry = lowrank.heal(healed, time, latency=False).healing[-1]
            found = subject.measure(lowrank.load(healed))
            shutil.rmtree(healed)
            told = (entry["after"] / entry["before"], entry["rate"], entry["steps"])
            yield [*head, time, *found, *told]


def main() -> None:
    parser = subjects.parser(__doc__, ("vit", "gpt"))
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.5, 0.3, 0.2])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--healed-on", choices=("built-in", "own", "other"), help="one part, in a table of its own")
    parser.add_argument("--resume", action="store_true", help="rows of the table that is there are not measured again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        for name, subject in subjects.asked(args, Path(work)):
            if name == "minilm":
                # All of its sentences, of which the calibration takes some from all over.
                whole = replace(subject.calib, calib=str(args.data / "stsb_train.tsv"))
                subject = replace(subject, calib=whole)
            opened: Any = lowrank.open_model(subject.source)
            columns = {"model": "", "data": "", "keep": "g", "minutes": "g"} | dict(subject.columns) | TOLD
            title = f"healing-{name}-{args.healed_on}" if args.healed_on else f"healing-{name}"
            rows = measured_before(args.output, title, columns) if args.resume else []
            if not rows:
                rows.append([subject.name, "dense", 1, None, *subject.measure(opened.module), None, None, None])
            planned = starts(subject, args.keeps, args.minutes, reads_text=opened.tokenizer is not None)
            chosen = [start for start in planned if start.label.startswith(args.healed_on or "")]
            for row in rows_of(subject, chosen, [row[:4] for row in rows], Path(work)):
                rows.append(row)
                text = publish(Table(columns, rows), args.output, title)
                print(text.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
