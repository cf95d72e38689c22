"""One thread or eight: the same ranks, the same factors but for the last digits; the same bits with the same number.

Each run is a process of its own, as BLAS reads its number of threads once.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

RUN = """
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from lowrank.core.analysis import Analysis, Folds
from lowrank.core.weight_analysis import analyze_weight
from lowrank.core.budget import Budget
from lowrank.core.truncation.gram import Gram
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.structures import factorize_option
from lowrank.core.weight import Layer, Weight
from lowrank.parallel import windowed_map

blas, workers, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rng = np.random.default_rng(0)
shapes = [(96, 96), (80, 160), (160, 80), (96, 96)]
weights, matrices, inputs = [], {}, {}
for i, (rows, cols) in enumerate(shapes):
    name = f"layer.{i}"
    weights.append(Weight(name, rows, cols, "float32", "projection", (Layer(name, "linear"),)))
    u, s, v = np.linalg.svd(rng.standard_normal((rows, cols)), full_matrices=False)
    # Decaying, with two values that are all but equal, between which directions may turn.
    s = np.arange(1, len(s) + 1) ** -0.7
    s[11] = s[10] * (1 - 1e-13)
    matrices[name] = (u * s) @ v
    inputs[name] = rng.standard_normal((500, cols)) * np.logspace(0, -2, cols)


class Numbers:
    def read(self, name):
        return matrices[name]

    def bias(self, name):
        return None


def gram(weight, x):
    if weight.rows >= weight.cols:
        return Gram.of("input", x)
    return Gram.of("output", x @ matrices[weight.name].T, float(np.square(x).sum()))


with threadpool_limits(blas), ThreadPoolExecutor(workers) as pool:
    grams = {w.name: Folds(*(gram(w, part) for part in np.split(inputs[w.name], [400]))) for w in weights}
    records = windowed_map(lambda w: analyze_weight(w, matrices[w.name], grams[w.name]), weights, pool)
    analysis = Analysis(tuple(records), grams=grams)
    plan = Knapsack().select(analysis, Budget.params(0.5))
    made = windowed_map(lambda o: factorize_option(o, analysis, Numbers()), plan.options, pool)
    found = {}
    for part in made:
        for name, replacement in part.items():
            found[f"{name}:product"] = replacement.factors.product()
            found[f"{name}:left"] = replacement.factors.left
for record in analysis.weights:
    found[f"{record.weight.name}:plain"] = record.plain.values
    found[f"{record.weight.name}:curve"] = record.error_curve
found["plan"] = np.array([[o.structure == "pivoted", o.rank, o.cost] for o in plan.options])
np.savez(out, **found)
"""


def run(folder: Path, blas: int, workers: int, turn: int = 0) -> dict[str, np.ndarray]:
    place = folder / f"{blas}-{workers}-{turn}.npz"
    subprocess.run([sys.executable, "-c", RUN, str(blas), str(workers), str(place)], check=True, timeout=120)
    with np.load(place) as found:
        return dict(found)


SPECTRUM = 1e-7
"""Of the largest singular value: the square root of machine precision, which is what small ones are known to."""
CURVE = 1e-10
"""Of all energy. Sums in another order differ by some 1e-14; along a direction that may turn they differ by the gap."""
PRODUCT = 1e-6
"""Of the weight's norm. A truncation moves by rounding (1e-16) over the gap between the last value that it keeps and
the first that it leaves out, which on smooth spectra is above 1e-6 of the largest energy even at the tail."""


@pytest.mark.slow
def test_one_thread_or_eight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # More threads than cores are allowed, but only if nothing from outside limits them.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "8")
    one = run(tmp_path, 1, 1)
    assert len(one) == 17
    many, wide = run(tmp_path, 1, 8), run(tmp_path, 8, 1)
    wide_again = run(tmp_path, 8, 1, turn=1)
    # With the same number of BLAS threads every bit is the same, whatever the number of workers.
    for name, values in one.items():
        assert (many[name] == values).all(), name
        assert (wide_again[name] == wide[name]).all(), name
    assert (wide["plan"] == one["plan"]).all()
    for name, values in one.items():
        if name.endswith(":plain"):
            assert np.abs(wide[name] - values).max() <= SPECTRUM * values[0], name
        elif name.endswith(":curve"):
            assert np.abs(wide[name] - values).max() <= CURVE, name
        elif name.endswith(":product"):
            assert np.linalg.norm(wide[name] - values) <= PRODUCT * np.linalg.norm(values), name
