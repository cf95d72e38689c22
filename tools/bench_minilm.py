"""Benchmark on all-MiniLM-L6-v2: quality, bytes, latency, seconds and memory, as a Markdown table.

    python tools/bench_minilm.py --sts stsb_dev.tsv --calib stsb_train.tsv --column sentence1,sentence2

Quality is the Spearman correlation of embedding similarity with human scores (`--sts`, a tab-separated file with the
columns score, sentence1, sentence2), and the mean cosine to the dense model's embeddings. Both are measured on the
`model.onnx` that `lowrank compress` wrote.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from measured import Cell, Table, publish
from subjects import ROWS, first_rows, minilm_folder, read_pairs, spearman

KEEPS = (0.8, 0.5, 0.3)
COLUMNS = {
    "": "",
    "keep": "g",
    "STS Spearman": ".4f",
    "cosine to dense": ".3f",
    "model.onnx MB": ".1f",
    "latency / dense": ".3f",
    "seconds": "",
    "peak MB": ".0f",
}
METHODS = {
    "plain SVD, uniform ranks": ("uniform", False),
    "lowrank, default": ("knapsack", True),
}


def run_method(selector: str, settings: dict[str, Any], folder: Path) -> None:
    """In a process of its own, so that its peak memory is its own: one analysis, then every keep ratio."""
    import lowrank
    from lowrank.core.selection.registry import selector_type

    rows = {}
    for keep in KEEPS:
        report = lowrank.compress(
            str(minilm_folder()),
            keep,
            output=folder / f"{keep}",
            selector=selector_type(selector)(),
            settings=lowrank.Settings(**settings),
            latency=False,
        )
        rows[str(keep)] = {"keep": report.targets.keep_ratio, "seconds": report.seconds}
        if keep != KEEPS[-1]:
            following = folder / f"{KEEPS[KEEPS.index(keep) + 1]}"
            following.mkdir(parents=True, exist_ok=True)
            for name in ("analysis.json", "analysis.safetensors"):
                (following / name).write_bytes((folder / f"{keep}" / name).read_bytes())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": rows, "peak_mb": peak}))


def embed(model: Path, tokenizer: Any, sentences: list[str]) -> np.ndarray:
    """Mean-pooled embeddings from an ONNX file, sentences of one length together, so that nothing is padded."""
    from lowrank.evaluate.graph import open_graph

    session = open_graph(model, threads=2)
    encoded = tokenizer(sentences, truncation=True, max_length=256)["input_ids"]
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(encoded):
        by_length.setdefault(len(ids), []).append(i)
    vectors = np.zeros((len(sentences), 384), dtype=np.float32)
    for rows in by_length.values():
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            ids = np.array([encoded[i] for i in part], dtype=np.int64)
            feed = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
            }
            vectors[part] = session.run(None, feed)[0].mean(axis=1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def quantize(dense: Path, target: Path) -> Path:
    """What a user would try first: dynamic int8 of the dense model's matrix products."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)
    target.parent.mkdir(parents=True, exist_ok=True)
    quantize_dynamic(dense, target, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"])
    return target


def time_analysis(run: Path, rounds: int = 3) -> tuple[float, float]:
    """Median seconds of the analysis, calibrated Grams given, and of torch.linalg.svd for the same 36 matrices, "
    "in turn."""
    import torch

    from lowrank.artifacts import load_analysis
    from lowrank.backends import open_model
    from lowrank.pipeline import analyze_weights

    backend = open_model(minilm_folder())
    weights = [w for w in backend.weights if w.role == "projection"]
    tensors = [torch.from_numpy(backend.read(w.name)).float() for w in weights]
    grams = dict(load_analysis(run).grams)
    ours, theirs = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        analyze_weights(backend, weights, grams)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        for tensor in tensors:
            torch.linalg.svd(tensor, full_matrices=False)
        theirs.append(time.perf_counter() - start)
    return median(ours), median(theirs)


def bench(args: argparse.Namespace) -> str:
    from transformers import AutoTokenizer

    import lowrank
    from lowrank.backends.torch.inputs import of_transformers
    from lowrank.calibrate.builtin import judging_text
    from lowrank.evaluate.latency import measure_latency

    folder = Path(args.output)
    # A kept analysis would hide the seconds that it took.
    shutil.rmtree(folder, ignore_errors=True)
    lowrank.export(str(minilm_folder()), folder / "dense")
    calib = str(first_rows(Path(args.calib), folder / "calibration.tsv", args.rows)) if args.calib else None
    files, results = {"dense": folder / "dense" / "model.onnx"}, {}
    files["dense, int8"] = quantize(files["dense"], folder / "int8" / "model.onnx")
    for number, (label, (selector, with_data)) in enumerate(METHODS.items()):
        settings = {"calib": calib, "column": args.column, "samples": args.samples} if with_data else {"calib": "none"}
        command = [sys.executable, __file__, "--method", selector, "--settings", json.dumps(settings)]
        command += ["--output", str(folder / str(number))]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[label] = json.loads(found.splitlines()[-1])
        files |= {f"{label} {keep}": folder / str(number) / f"{keep}" / "model.onnx" for keep in KEEPS}
    model: Any = lowrank.open_model(str(minilm_folder()))
    latency = measure_latency(files, of_transformers(model.module), rounds=args.rounds)  # pyright: ignore[reportArgumentType]
    tokenizer = AutoTokenizer.from_pretrained(str(minilm_folder()))
    pairs, scores = read_pairs(Path(args.sts)) if args.sts else ([], [])
    sentences = [a for a, _ in pairs] + [b for _, b in pairs] or judging_text("lines")
    vectors = {name: embed(path, tokenizer, sentences) for name, path in files.items()}

    def row(file: str, name: str, share: float, stages: str | None, peak: float | None) -> list[Cell]:
        rho = spearman(vectors[file], scores) if scores else None
        cosine = float((vectors[file] * vectors["dense"]).sum(1).mean())
        size = sum(p.stat().st_size for p in files[file].parent.glob(f"{files[file].name}*")) / 1e6
        return [name, share, rho, cosine, size, latency[file] / latency["dense"], stages, peak]

    rows = [row(name, name, 1, None, None) for name in ("dense", "dense, int8")]
    for label, result in results.items():
        for share in KEEPS:
            found = result["rows"][str(share)]
            stages = ", ".join(f"{k} {v:.1f}" for k, v in found["seconds"].items() if v >= 0.05)
            rows.append(row(f"{label} {share}", label, share, stages, result["peak_mb"]))
    table = publish(Table(COLUMNS, rows), folder.parent, "minilm")
    ours, theirs = time_analysis(folder / str(len(METHODS) - 1) / str(KEEPS[0]))
    return (
        f"{table}\n\nDense latency {latency['dense']:.1f} ms (1 thread, batch 1, 128 tokens, median of {args.rounds} "
        f"rounds in turn). "
        f"Analysis of the 36 matrices (calibration aside) {ours:.2f} s, torch.linalg.svd of the same {theirs:.2f} s "
        f"({ours / theirs:.2f} of its time). Cosine: of {len(sentences)} sentence embeddings."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sts", help="tab-separated file with score, sentence1, sentence2")
    parser.add_argument("--calib", help="calibration text; by default the built-in text")
    parser.add_argument("--column", help="its column")
    parser.add_argument("--rows", type=int, default=ROWS, help="of the calibration file, the first ones")
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", default="bench/minilm", help="folder for models; the table is beside it")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        run_method(args.method, json.loads(args.settings), Path(args.output))
        return
    print(bench(args))


if __name__ == "__main__":
    main()
