"""Rounding while blocks are refined, against rounding the refined model: four bits a number.

    python tools/bench_rounding.py --data DATA [--stories stories260K] [--vit vit] [--gpt gpt] --output bench

Both begin with the same replacements, after the refit. What is measured is the module whose blocks have the numbers
that a file of four bits has; tables and activations are exact. "not rounded" is the refined model as it is. What a
table in the output has already is not measured again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import subjects
from bench_methods import measured
from measured import Cell, Table, measured_before, publish

import lowrank
from lowrank.calibrate.data import load_calibration
from lowrank.calibrate.refit import sequential_refit
from lowrank.core.rounding.formats import FORMATS, Format
from lowrank.core.selection.knapsack import Knapsack
from lowrank.healing.grids import grids_in
from lowrank.healing.module_runner import block_paths
from lowrank.healing.rounding import round_
from lowrank.pipeline.plans import factorize
from lowrank.pipeline.refining import refine
from lowrank.pipeline.request import FEW_BITS
from lowrank.pipeline.run.write import rounding_feeds
from lowrank.progress import silent

KEEPS = (0.8, 0.5)
FORMAT = "int4"


def format_of(_: str) -> Format:
    """Of every matrix."""
    return FORMATS[FORMAT]


AFTER, DURING = "rounded after refinement", "rounded while refined"


def rows_of(subject: subjects.Subject, known: Container[list[Cell]]) -> Iterator[list[Cell]]:
    """Keep ratio, how, and what was measured, for each that is not known."""
    backend: Any = lowrank.open_model(subject.source)
    settings = subject.calib
    data: Any = load_calibration(backend, Path(str(settings.calib)), settings.column, settings.samples, settings.mixed)
    backend, analysis = data.backend, measured(data)
    for keep in KEEPS:
        made = factorize(backend, analysis, lowrank.select(analysis, keep, Knapsack(structures=FEW_BITS)))
        made = sequential_refit(data, backend.rewrite(made), made, analysis, silent)
        if [keep, "not rounded"] not in known or [keep, AFTER] not in known:
            small = backend.rewrite(made)
            refine(data, small)
            yield [keep, "not rounded", *subject.measure(small.module)]
            grids = grids_in(small.module, format_of, block_paths(small.module, small.signature, data.fit[0]))
            round_(small.module, small.signature, grids, rounding_feeds(data))
            yield [keep, AFTER, *subject.measure(small.module)]
        if [keep, DURING] not in known:
            small = backend.rewrite(made)
            refine(data, small, format_of=format_of)
            yield [keep, DURING, *subject.measure(small.module)]


def main() -> None:
    args = subjects.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as work:
        for name, subject in subjects.asked(args, Path(work)):
            title, columns = f"rounding-{name}", {"keep": "g", "four bits": "", **subject.columns}
            rows = measured_before(args.output, title, columns)
            for row in rows_of(subject, [each[:2] for each in rows]):
                rows = [*(each for each in rows if each[:2] != row[:2]), row]
                print(publish(Table(columns, rows), args.output, title).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
