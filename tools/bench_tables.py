"""Tables that are looked up, alone: what weighting rows by how often they are read gives, and the tied head's share.

    python tools/bench_tables.py --data DATA [--gpt gpt] --output bench

The embeddings of all-MiniLM-L6-v2, and those of a small GPT-2 with its tied head (`train_gpt.py`), at two keep ratios;
nothing else is changed. "Unseen" is the share of the plain metric (`core.factors.UNSEEN`), for rows that the
calibration data did not show: it is what the last column, of another domain, is for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import subjects
from measured import Cell, Table, publish

import lowrank
from lowrank.calibrate.collect import collect_grams
from lowrank.calibrate.data import load_calibration
from lowrank.calibrate.sensitivity import CURVATURE_TOKENS, some_batches
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.selection.simple import Uniform
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.directions import UNSEEN, Directions, curved_directions, directions
from lowrank.pipeline.analyzing import analyze_weights
from lowrank.progress import silent

KEEPS = (0.5, 0.25)
SHARES = (1e-6, 0.03, 0.1, 0.3, 1.0)


def metrics(backend: Any, calibration: Any, weights: Any) -> Iterator[tuple[str, dict[str, Directions]]]:
    """Each way to order the directions of the tables, by weight name."""
    grams = collect_grams(calibration, weights, silent)
    read = {w.name: backend.read(w.name) for w in weights}
    yield "plain SVD", {name: directions(matrix) for name, matrix in read.items()}
    for share in SHARES:
        label = f"by frequency, unseen {share:g}"
        yield label, {name: directions(matrix, grams[name].fit, ridge=share) for name, matrix in read.items()}
    curvatures = backend.curvature(some_batches(calibration, CURVATURE_TOKENS, fit=True), list(read))
    yield (
        f"by frequency, unseen {UNSEEN:g}, two-sided",
        {
            name: curved_directions(matrix, grams[name].fit, curvatures[name], ridge=UNSEEN)
            for name, matrix in read.items()
        },
    )


def rows(subject: subjects.Subject) -> Iterator[list[Cell]]:
    backend: Any = lowrank.open_model(subject.source)
    settings = subject.calib
    calibration: Any = load_calibration(
        backend, Path(str(settings.calib)), settings.column, settings.samples, settings.mixed
    )
    backend = calibration.backend
    # Position tables are read at every place alike; what is looked up by content is the largest.
    weights = [max((w for w in backend.weights if w.role == "embedding"), key=lambda w: w.params)]
    plain = Analysis(analyze_weights(backend, weights, {}))
    yield ["dense", 1, *subject.measure(backend.module)]
    found = dict(metrics(backend, calibration, weights))
    for share in KEEPS:
        ranks = {o.group: o.rank for o in Uniform().select(plain, Budget.params(share)).options}
        for label, chosen in found.items():
            made = {
                name: Replacement("two_factor", order.truncate(backend.read(name), ranks[name]))
                for name, order in chosen.items()
            }
            yield [label, share, *subject.measure(backend.rewrite(made).module)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--gpt", type=Path)
    parser.add_argument("--output", type=Path, default=Path("bench"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = {"minilm": subjects.minilm(args.data, Path(work))}
        found |= {"gpt": subjects.gpt(args.gpt, args.data)} if args.gpt else {}
        for name, subject in found.items():
            columns = {subject.name: "", "keep": "g"} | dict(subject.columns)
            print(publish(Table(columns, list(rows(subject))), args.output, f"tables-{name}"), end="\n\n")


if __name__ == "__main__":
    main()
