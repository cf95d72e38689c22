"""How much calibration data is enough: quality of all-MiniLM-L6-v2 against the number of sentences.

    python tools/bench_samples.py --data DATA --output bench

Uniform ranks in the metric of the data (SVD-LLM's formula) and everything that `lowrank compress` does, each with its
seconds: reading, moments, sensitivities, choice, refit, both keep ratios together.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import subjects
from bench_methods import ours
from measured import Cell, Table, publish
from published import svd_llm

import lowrank
from lowrank.calibrate.data import load_calibration

KEEPS = (0.5, 0.3)
SAMPLES = (256, 1024, 4096, 11498)
"""Spread evenly over the training split; the last are all that it has."""
METHODS = {"SVD-LLM": svd_llm, "lowrank": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("bench"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        subject = subjects.minilm(args.data, Path(work))
    train = args.data / "stsb_train.tsv"
    columns = {"method": "", "sentences": ".0f", "keep": "g"} | dict(subject.columns)
    rows: list[list[Cell]] = []
    text = ""
    for samples in SAMPLES:
        for label, method in METHODS.items():
            start = time.perf_counter()
            backend: Any = lowrank.open_model(subject.source)
            calibration: Any = load_calibration(backend, train, subject.calib.column, samples)
            compress = method(calibration)
            small = {share: calibration.backend.rewrite(compress(share)).module for share in KEEPS}
            seconds = time.perf_counter() - start
            for share, module in small.items():
                rows.append([label, samples, share, *subject.measure(module), seconds])
            text = publish(Table(columns | {"seconds": ".0f"}, rows), args.output, "samples")
    print(text)


if __name__ == "__main__":
    main()
