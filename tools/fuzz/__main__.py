"""Read damaged files: `python -m tools.fuzz --reader all --inputs 100000`.

Ends with 1 if any gives neither a result nor a refusal; the first of each kind is written to `--output`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .attempt import damaged
from .hunt import Tally, hunt
from .readers import READERS, Reader


def main() -> None:
    names = [reader.name for reader in READERS]
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--reader", action="append", choices=[*names, "all"], help="may be repeated")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds-each", type=float, default=5.0, help="more for one input is a hang")
    parser.add_argument("--seconds-reader", type=float, default=float("inf"), help="then its count is what it is")
    parser.add_argument("--output", type=Path, default=Path("fuzz-faults"), help="folder of the inputs with faults")
    given = parser.parse_args()
    wanted = {*(given.reader or ["all"])}
    console = Console(width=140, markup=False, highlight=False, emoji=False)
    table = Table("reader", "calls", *("inputs", "results", "refusals", "faults", "worst s", "peak MiB"))
    faulty = False
    for reader in READERS:
        if not wanted & {reader.name, "all"}:
            continue
        tally = hunt(reader, given.inputs, given.seed, given.seconds_each, given.seconds_reader)
        faults = sum(map(len, tally.faults.values()))
        counts = [f"{n:,}" for n in (tally.inputs, tally.results, tally.refusals, faults)]
        table.add_row(reader.name, reader.calls, *counts, f"{tally.seconds:.2f}", f"{tally.peak:.0f}")
        console.print(f"{reader.name}: {', '.join(counts)}")
        for line in _kept(reader, tally, given.seed, given.output):
            console.print(f"  {line}", soft_wrap=True)
        faulty |= bool(faults)
    console.print(table)
    sys.exit(faulty)


def _kept(reader: Reader, tally: Tally, seed: int, folder: Path) -> list[str]:
    """Writes the first input of every kind of fault; a line for each."""
    lines: list[str] = []
    for what, numbers in tally.faults.items():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{reader.name}-{seed}-{numbers[0]}{Path(reader.file).suffix}"
        path.write_bytes(damaged(reader, seed, numbers[0]))
        lines.append(f"{len(numbers):,} x {what} ({path})")
    return lines


if __name__ == "__main__":
    main()
