"""What a gather costs: one layer as a product, as two factors and as pivoted factors, in ONNX Runtime.

    python tools/bench_pivots.py

One thread, batch 1, 128 tokens, all forms in turn. "In order" is what neighbours that agree on an order of the channels
leave of a pivoted layer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from measured import Cell, Table, publish

from lowrank.backends.inputs import Input, Signature
from lowrank.backends.outputs import Output
from lowrank.backends.torch.export import export_onnx
from lowrank.evaluate.latency import measure_latency
from lowrank.nn import LowRankLinear, PivotedLinear

SHAPES = ((384, 384, 12), (1536, 384, 1), (384, 1536, 1), (768, 768, 12))
"""Outputs, inputs, heads."""


def forms(rows: int, cols: int, heads: int) -> dict[str, nn.Module]:
    rank = min(rows, cols) // 2
    return {
        "dense": nn.Linear(cols, rows),
        "two factors": LowRankLinear(cols, rows, rank),
        "pivoted, gathered": PivotedLinear(cols, rows, rank),
        "pivoted outputs in order": PivotedLinear(cols, rows, rank, heads=heads),
        "pivoted inputs in order": PivotedLinear(cols, rows, rank, side="input", last=True, heads=heads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("bench"))
    given = parser.parse_args()
    torch.manual_seed(0)
    columns: dict[str, str] = {}
    table: list[list[Cell]] = []
    for rows, cols, heads in SHAPES:
        spec = Input("input", "float32", ("batch", "sequence", cols))
        signature = Signature((spec,), (Output("output"),), positional=1)
        with tempfile.TemporaryDirectory() as folder:
            files: dict[str, Path] = {}
            for name, module in forms(rows, cols, heads).items():
                files[name] = Path(folder) / f"{name}.onnx"
                export_onnx(module.eval(), signature, files[name])
            found = measure_latency(files, signature, rounds=300)
        columns = {"outputs x inputs, rank, heads": ""} | dict.fromkeys(found, ".0f us")
        shape = f"{rows} x {cols}, {min(rows, cols) // 2}, {heads}"
        table.append([shape, *(1e3 * milliseconds for milliseconds in found.values())])
    print(publish(Table(columns, table), given.output, "pivots"))


if __name__ == "__main__":
    main()
