"""Bytes and milliseconds on the edge: dense and compressed all-MiniLM-L6-v2, in every type, as one table.

    python tools/bench_edge.py --data DATA [--keep 0.3] [--heal 15] --output bench

DATA holds stsb_train.tsv and stsb_dev.tsv. Every file is run by plain ONNX Runtime with one thread: Spearman on STS-B
dev, bytes, medians of milliseconds at four shapes, all files in turn, and the memory that a fresh process needs beyond
onnxruntime itself. The baseline is the dense model for ONNX Runtime (`--profile ort`), and in int8 the fastest of two
ways to round it: this tool's and ONNX Runtime's own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import subjects
from bench_minilm import embed

import lowrank
from lowrank.backends import open_model
from lowrank.backends.inputs import Signature, spread
from lowrank.edge import Dtype, Target, fit_file, quantize, standalone, write_onnx
from lowrank.evaluate import measure_latency

SHAPES = ((1, 1), (1, 16), (1, 128), (8, 64))
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "int8", "int4")
TOKENS = 16384


def rounded_by_onnxruntime(source: Path, target: Path) -> None:
    """The recipe that its documentation gives for transformers."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Attention", "Gather"],
        extra_options={"MatMulConstBOnly": True},
    )


def pruned(module: Any) -> Any:
    """Half of every projection's numbers set to zero, the smallest ones."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2 and ".layer." in name:
                bound = parameter.abs().flatten().kthvalue(parameter.numel() // 2).values
                parameter[parameter.abs() <= bound] = 0.0
    return module


def files_of(keep: float, minutes: float, data: Path, work: Path) -> dict[str, Path]:
    """Every variant as a file, by its name in the table."""
    subject = subjects.minilm(data, work)
    found: dict[str, Path] = {}
    dense: Any = open_model(subject.source)
    signature = dense.signature
    assert isinstance(signature, Signature)
    for dtype in DTYPES:
        path = found[f"dense {dtype}"] = work / f"dense-{dtype}" / "model.onnx"
        path.parent.mkdir()
        write_onnx(dense, path)
        fit_file(path, Target(profile="ort", dtype=dtype), signature)
    path = found["dense int8, by onnxruntime"] = work / "dense-ort" / "model.onnx"
    path.parent.mkdir()
    rounded_by_onnxruntime(found["dense float32"], path)
    path = found["half of the weights zero"] = work / "pruned" / "model.onnx"
    path.parent.mkdir()
    write_onnx(open_model(pruned(open_model(subject.source).module)), path)  # pyright: ignore[reportAttributeAccessIssue]
    fit_file(path, Target(profile="ort"), signature)

    run = work / "run"
    lowrank.compress(subject.source, keep, output=run, settings=subject.calib, latency=False)
    calibration = lowrank.calibrate.load_calibration(dense, Path(str(subject.calib.calib)), subject.calib.column)
    assert calibration is not None
    for healed in (False, True) if minutes else (False,):
        if healed:
            lowrank.heal(run, minutes, latency=False)
        small: Any = calibration.backend.saved_in(run, dict)
        feeds = spread(calibration.fit, TOKENS)
        label = f"keep {keep:g}" + (", healed" if healed else "")
        for dtype in DTYPES:
            path = found[f"{label} {dtype}"] = work / f"{label}-{dtype}" / "model.onnx"
            path.parent.mkdir()
            write_onnx(small, path)
            fit_file(path, Target(profile="ort", dtype=dtype), signature, feeds)
        for dtype in DTYPES[2:]:
            path = found[f"{label} {dtype}, only rounded"] = work / f"{label}-{dtype}-plain" / "model.onnx"
            path.parent.mkdir()
            write_onnx(small, path)
            quantize.quantize_file(path, dtype, signature, feeds, plain=True)
            fit_file(path, Target(profile="ort"), signature)
    return found


def memory(path: Path) -> float:
    """MB that a fresh process has at its peak, beyond what it has before it opens the model."""
    command = [sys.executable, str(standalone.__file__), "--model", str(path), "--time", "3"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return told["peak_mb"] - told["before_mb"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--heal", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("bench"))
    given = parser.parse_args()
    from transformers import AutoTokenizer

    folder = subjects.minilm_folder()
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    pairs, scores = subjects.read_pairs(given.data / "stsb_dev.tsv")
    texts = [a for a, _ in pairs] + [b for _, b in pairs]
    with tempfile.TemporaryDirectory() as work:
        files = files_of(given.keep, given.heal, given.data, Path(work))
        signature: Any = open_model(str(folder)).signature
        times = {shape: measure_latency(files, signature, *shape, rounds=given.rounds) for shape in SHAPES}
        head = ["all-MiniLM-L6-v2", "Spearman", "MB", *(f"{b} x {s}" for b, s in SHAPES), "peak MB"]
        lines = [head, ["---"] * len(head)]
        for name, path in files.items():
            vectors = embed(path, tokenizer, texts)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            size = sum(p.stat().st_size for p in path.parent.iterdir()) / 1e6
            first = [times[shape]["dense float32"] / times[shape][name] for shape in SHAPES]
            ratios = [f"{times[s][name]:.2f} ({r:.2f}x)" for s, r in zip(SHAPES, first, strict=True)]
            score = subjects.spearman(vectors.astype(np.float64), scores)
            lines.append([name, f"{score:.4f}", f"{size:.1f}", *ratios, f"{memory(path):.0f}"])
            print(" | ".join(lines[-1]), flush=True)
    given.output.mkdir(parents=True, exist_ok=True)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (given.output / "edge.md").write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
