"""Benchmark on all-MiniLM-L6-v2: quality, bytes, latency, seconds and memory, as a Markdown table.

    python tools/bench_minilm.py --data DATA

Quality is the Spearman correlation of embedding similarity with human scores (STS-B dev), nDCG@10 of retrieval (cisi),
and the mean cosine to the dense model's embeddings, of sentences and of passages of 256 tokens. All is measured on the
graphs that `lowrank compress` wrote, and on what one would take instead (`baselines.py`). DATA holds
stsb_train.tsv, stsb_dev.tsv, sst2_dev.tsv and cisi, a collection in the layout of BEIR; without it, the model is
calibrated on the built-in text, and only the cosine of other such text is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from baselines import Variant, baselines, milliseconds
from measured import Cell, Table, publish
from sentences import PASSAGES, RETRIEVAL, SIMILARITY, Embed, Judge, cosine, minilm_folder
from subjects import ROWS, first_rows

import lowrank
from lowrank.artifacts import load_analysis
from lowrank.backends.base import signature_of
from lowrank.calibrate.builtin import judging_text
from lowrank.core.selection.registry import selector_type
from lowrank.evaluate.latency import measure_latency
from lowrank.pipeline import analyze_weights
from lowrank.results.report import INT8_FILE, ONNX_FILE

KEEPS = (0.8, 0.5, 0.3)
COLUMNS = {
    "": "",
    "keep": "g",
    "STS Spearman": ".4f",
    RETRIEVAL: ".1f",
    "cosine to dense": ".3f",
    PASSAGES: ".3f",
    "MB": ".1f",
    "latency / dense": ".3f",
    "seconds": "",
    "peak MB": ".0f",
}
MEASURED = (SIMILARITY, RETRIEVAL, "cosine to dense", PASSAGES)
DEFAULT = "lowrank, default"
METHODS = {
    "plain SVD, uniform ranks": ("uniform", False, False),
    "lowrank, no refinement": ("knapsack", True, False),
    DEFAULT: ("knapsack", True, True),
}
"""How ranks are chosen, whether there are data, and whether blocks are refined."""


def run_method(selector: str, refine: bool, settings: dict[str, Any], folder: Path) -> None:
    """In a process of its own, so that its peak memory is its own: one analysis, then every keep ratio."""
    rows = {}
    for keep in KEEPS:
        report = lowrank.compress(
            str(minilm_folder()),
            keep,
            output=folder / f"{keep}",
            selector=selector_type(selector)(),
            settings=lowrank.Settings(**settings),
            refine=refine,
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


def time_analysis(run: Path, rounds: int = 3) -> tuple[float, float]:
    """Median seconds of the analysis, calibrated Grams given, and of torch.linalg.svd for the same 36 matrices, "
    "in turn."""
    import torch

    backend: Any = lowrank.open_model(str(minilm_folder()))
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


def judge_of(data: Path | None, dense: Embed) -> Callable[[Variant], tuple[Cell, ...]]:
    """What measures `MEASURED`; without data, of the built-in text alone."""
    if data:
        judge = Judge(data, dense)

        def by_data(variant: Variant) -> tuple[Cell, ...]:
            found = judge.by_name(variant.embed, other=variant.other)
            return tuple(found[name] for name in MEASURED)

        return by_data
    texts = judging_text("lines")
    known = dense(texts)
    return lambda v: (None, None, None if v.other else cosine(v.embed(texts), known), None)


def run_methods(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both methods, each in a process of its own: what it printed."""
    given: dict[str, Any] = {"samples": args.samples}
    if args.data:
        calib = first_rows(args.data / "stsb_train.tsv", folder / "calibration.tsv", args.rows)
        given |= {"calib": str(calib), "column": "sentence1,sentence2"}
    results: dict[str, Any] = {}
    for number, (label, (selector, with_data, refine)) in enumerate(METHODS.items()):
        settings = given if with_data else {"calib": "none"}
        command = [sys.executable, __file__, "--method", selector, "--settings", json.dumps(settings)]
        command += ["--output", str(folder / str(number)), *(["--refine"] if refine else [])]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[label] = json.loads(found.splitlines()[-1]) | {"folder": folder / str(number)}
    return results


def bench(args: argparse.Namespace) -> str:
    folder = args.output
    # A kept analysis would hide the seconds that it took.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    results = run_methods(args, folder)
    instead = list(baselines(folder))
    variants = [Variant.of("dense", folder / "dense" / "model.onnx"), *instead]
    compressed = [(label, keep) for label in results for keep in KEEPS]
    variants += [Variant.of(label, results[label]["folder"] / f"{keep}" / ONNX_FILE) for label, keep in compressed]
    places = {keep: results[DEFAULT]["folder"] / f"{keep}" / INT8_FILE for keep in KEEPS}
    rounded = [keep for keep in KEEPS if places[keep].exists()]
    variants += [Variant.of(f"{DEFAULT}, {INT8_FILE}", places[keep]) for keep in rounded]
    files = {str(i): variant.file for i, variant in enumerate(variants) if variant.file}
    latency = measure_latency(files, signature_of(lowrank.open_model(str(minilm_folder()))), rounds=args.rounds)
    judge = judge_of(args.data, variants[0].embed)
    rows: list[list[Cell]] = []
    for i, variant in enumerate(variants):
        took = latency[str(i)] if variant.file else milliseconds(variant.embed, args.rounds)
        rows.append([variant.name, 1, *judge(variant), variant.megabytes, took / latency["0"], None, None])
    rows, of_rounded = rows[: len(rows) - len(rounded)], rows[len(rows) - len(rounded) :]
    for row, (label, keep) in zip(rows[-len(compressed) :], compressed, strict=True):
        seconds = results[label]["rows"][str(keep)]["seconds"]
        row[1] = keep
        row[-2:] = ", ".join(f"{k} {v:.1f}" for k, v in seconds.items() if v >= 0.05), results[label]["peak_mb"]
    for row, keep in zip(of_rounded, rounded, strict=True):
        row[1] = keep
    table = publish(Table(COLUMNS, [*rows, *of_rounded]), folder.parent, "minilm")
    ours, theirs = time_analysis(folder / str(len(METHODS) - 1) / str(KEEPS[0]))
    return (
        f"{table}\n\nDense latency {latency['0']:.1f} ms (1 thread, batch 1, 128 tokens, median of {args.rounds} "
        f"rounds in turn). "
        f"Analysis of the 36 matrices (calibration aside) {ours:.2f} s, torch.linalg.svd of the same {theirs:.2f} s "
        f"({ours / theirs:.2f} of its time)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS, help="of stsb_train.tsv, the first ones")
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("bench/minilm"), help="for models; the table is beside it")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--refine", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        run_method(args.method, args.refine, json.loads(args.settings), args.output)
        return
    print(bench(args))


if __name__ == "__main__":
    main()
