"""What some dense columns beside the factors of a weight gain, `W = L R + W[:, S]`, at equal numbers of parameters.

    python tools/bench_columns.py MODEL --calib FILE [--column sentence1,sentence2] [--arch module:factory]

MODEL and FILE are those of `bench_blocks.py`. The factors are those of `lowrank` in the metric of the data, of what
the dense columns do not explain of the others, and the dense columns are refitted: for a choice of S nothing is better.
S is chosen in three ways, in a few sizes: by the energies of the columns in what the factors leave, by forward
selection on it, and by this once more with factors that know the first choice. Errors are squared and relative, of each
weight's output on the held-out fold; of all choices the best one there is taken, which favours the columns a little.
"centred" looks at what is left after the means of inputs, which a bias can make up for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from bench_blocks import opened, options
from measured import Cell, Table, publish
from published import targeted

from lowrank.calibrate.collect import collect_grams
from lowrank.core.linalg.eigen import Matrix, solve_positive
from lowrank.core.truncation.directions import RIDGE, Directions, directions
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.neurons import neuron_order, output_energy
from lowrank.progress import silent

KEEPS = (0.2, 0.3, 0.5, 0.8)
SHARES = (0.05, 0.15, 0.4)
"""Of a weight's budget, for dense columns."""
FORMS = ("two factors", "pivoted")
COLUMNS = {"model": "", "weight": "", "keep": "g", "metric": ""}
for _form in FORMS:
    COLUMNS |= {_form: ".5f", f"{_form} and columns": ".5f", f"columns of {_form}": ".0f", f"chosen for {_form}": ""}
SUMMARY = {"model": "", "weights": "", "metric": "", "keep": "g"}
for _form in FORMS:
    SUMMARY |= {f"{_form}": ".4f", f"{_form}, with columns": ".4f", f"ratio, {_form}": ".3f", f"best of {_form}": ".3f"}
    SUMMARY |= {f"a tenth less, {_form}": ""}


def rank_of(form: str, numbers: float, rows: int, cols: int) -> float:
    """The rank that has so many numbers; between whole ones, so that no rest of a budget is left."""
    whole = rows + cols
    rank = (whole - max(whole**2 - 4 * numbers, 0.0) ** 0.5) / 2 if form == "pivoted" else numbers / whole
    return min(max(rank, 0.0), float(min(rows, cols)))


class Columns:
    """Some columns of a weight that are dense, and the directions of the rest.

    Args:
        weight: rows x cols.
        moment: of the inputs.
        chosen: which columns are dense.
    """

    def __init__(self, weight: Matrix, moment: Matrix, chosen: NDArray[np.int64]) -> None:
        self.weight, self.chosen = weight, chosen
        self.rest = np.setdiff1d(np.arange(len(moment)), chosen)
        left, self.explained = moment[np.ix_(self.rest, self.rest)], np.zeros((len(chosen), len(self.rest)))
        if len(chosen):
            across = moment[np.ix_(chosen, self.rest)]
            ridge = RIDGE * float(np.trace(moment)) / len(moment)
            inner = moment[np.ix_(chosen, chosen)] + ridge * np.eye(len(chosen))
            self.explained = solve_positive(inner, across)
            left = left - across.T @ self.explained
        gram = Gram("input", (left + left.T) / 2, 1, float(np.trace(left)))
        self.directions: Directions = directions(weight[:, self.rest], gram)

    def residual(self, rank: float) -> Matrix:
        """What factors of a rank leave of all columns, the dense ones too."""
        basis = self.directions.basis[:, : int(rank)]
        return self.weight - basis @ (basis.T @ self.weight)

    def product(self, rank: int) -> Matrix:
        """The matrix that columns and factors of a rank stand for."""
        rest, basis = self.weight[:, self.rest], self.directions.basis[:, :rank]
        made = np.zeros_like(self.weight)
        made[:, self.rest] = basis @ (basis.T @ rest)
        made[:, self.chosen] = self.weight[:, self.chosen] + (rest - made[:, self.rest]) @ self.explained.T
        return made


def choices(weight: Matrix, fit: Matrix, plain: Columns, numbers: float, count: int) -> Iterator[tuple[str, Columns]]:
    """Columns that are dense, by the way in which they were chosen."""
    rows, cols = weight.shape
    left = plain.residual(rank_of(FORMS[0], numbers, rows, cols))
    energies = np.square(left).sum(0) * np.diag(fit)
    yield "energy", Columns(weight, fit, np.argsort(-energies)[:count])
    first = Columns(weight, fit, neuron_order(left, fit)[:count])
    yield "selection", first
    left = first.residual(rank_of(FORMS[0], numbers - count * rows, rows, cols - count))
    yield "selection again", Columns(weight, fit, neuron_order(left, fit)[:count])


def cells_of(weight: Matrix, fit: Matrix, judge: Matrix, keep: float) -> list[Cell]:
    """For each form of the factors: the error alone, the least one with columns, how many they are, how chosen."""
    rows, cols = weight.shape
    numbers, total = keep * weight.size, output_energy(weight, judge)
    plain = Columns(weight, fit, np.zeros(0, np.int64))

    def error(made: Columns, form: str) -> float:
        count = len(made.chosen)
        rank = rank_of(form, numbers - count * rows, rows, cols - count)
        ends = [output_energy(weight - made.product(int(at)), judge) / total for at in (rank, np.ceil(rank))]
        return float(np.exp(np.interp(rank % 1, (0, 1), np.log(np.maximum(ends, 1e-12)))))

    found: dict[str, list[tuple[float, int, str]]] = {form: [] for form in FORMS}
    for share in SHARES:
        count = max(1, int(share * keep * cols))
        for how, made in choices(weight, fit, plain, numbers, count):
            for form in FORMS:
                found[form].append((error(made, form), count, how))
    return [cell for form in FORMS for cell in (error(plain, form), *min(found[form]))]


def summary(rows: list[list[Cell]]) -> list[list[Cell]]:
    """Medians over weights, the median and the least ratio of errors, and of how many weights a tenth is gained."""
    table: list[list[Cell]] = []
    for model, metric, keep in dict.fromkeys((row[0], row[3], row[2]) for row in rows):
        some: list[Any] = [row for row in rows if (row[0], row[3], row[2]) == (model, metric, keep)]
        cells: list[Cell] = [model, str(len(some)), metric, keep]
        for at in (4, 8):
            ratios = [row[at + 1] / max(row[at], 1e-12) for row in some]
            cells += [median(row[at] for row in some), median(row[at + 1] for row in some), median(ratios), min(ratios)]
            cells.append(f"{sum(ratio < 0.9 for ratio in ratios)} of {len(some)}")
        table.append(cells)
    return table


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--keeps", type=float, nargs="+", default=KEEPS)
    parser.add_argument("--every", type=int, default=1, help="take every so many weights of a shape")
    args = parser.parse_args()
    name, calibration = opened(args)
    weights = targeted(calibration.backend)
    by_shape = {shape: [w for w in weights if w.shape == shape] for shape in dict.fromkeys(w.shape for w in weights)}
    weights = [weight for same in by_shape.values() for weight in same[:: args.every]]
    grams = collect_grams(calibration, weights, silent, {w.name for w in weights})
    rows: list[list[Cell]] = []
    for weight in weights:
        matrix, folds = calibration.backend.read(weight.name), grams[weight.name]
        moments = [gram.moment / max(gram.tokens, 1) for gram in (folds.fit, folds.judge)]
        for metric, (fit, judge) in (("data", moments), ("centred", (folds.fit.covariance, folds.judge.covariance))):
            for keep in args.keeps:
                rows.append([name, weight.name, keep, metric, *cells_of(matrix, fit, judge, keep)])
    publish(Table(COLUMNS, rows), args.output, f"columns-{name}")
    print(publish(Table(SUMMARY, summary(rows)), args.output, f"columns-{name}-summary"))


if __name__ == "__main__":
    main()
