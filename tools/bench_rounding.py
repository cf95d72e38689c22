"""Rounding while blocks are refined, against rounding the refined model: four bits a number.

    python tools/bench_rounding.py --data DATA [--stories stories260K] [--vit vit] [--gpt gpt] --output bench

Both begin with the same replacements, after the refit. What is measured is the module whose blocks have the numbers
that a file of four bits has; tables and activations are exact. "not rounded" is the refined model as it is.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import subjects
from bench_methods import measured
from measured import Cell, Table, publish

import lowrank
from lowrank.calibrate.data import load_calibration
from lowrank.calibrate.refit import sequential_refit
from lowrank.core.rounding.formats import FORMATS, Format
from lowrank.core.selection.knapsack import Knapsack
from lowrank.healing.module_runner import block_paths
from lowrank.healing.rounding import formats_in, round_
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


def rows_of(subject: subjects.Subject) -> Any:
    """Keep ratio, how, and what was measured."""
    backend: Any = lowrank.open_model(subject.source)
    settings = subject.calib
    data: Any = load_calibration(backend, Path(str(settings.calib)), settings.column, settings.samples, settings.mixed)
    backend, analysis = data.backend, measured(data)
    for keep in KEEPS:
        made = factorize(backend, analysis, lowrank.select(analysis, keep, Knapsack(structures=FEW_BITS)))
        made = sequential_refit(data, backend.rewrite(made), made, analysis, silent)
        after, during = backend.rewrite(made), backend.rewrite(made)
        refine(data, after)
        yield [keep, "not rounded", *subject.measure(after.module)]
        formats = formats_in(after.module, block_paths(after.module, after.signature, data.fit[0]), format_of)
        round_(after.module, after.signature, formats, rounding_feeds(data))
        yield [keep, "rounded after refinement", *subject.measure(after.module)]
        refine(data, during, format_of=format_of)
        yield [keep, "rounded while refined", *subject.measure(during.module)]


def main() -> None:
    args = subjects.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as work:
        for name, subject in subjects.asked(args, Path(work)):
            rows: list[list[Cell]] = []
            for row in rows_of(subject):
                rows.append(row)
                columns = {"keep": "g", "four bits": "", **subject.columns}
                print(publish(Table(columns, rows), args.output, f"rounding-{name}").splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
