"""Runs of which there is only what a page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from builders import decaying, inputs

from lowrank.core.analysis import Analysis, Folds
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan
from lowrank.core.prediction import predicted_error
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.simple import Uniform
from lowrank.core.truncation.gram import Gram
from lowrank.core.weight import Layer, Skip, Weight
from lowrank.core.weight_analysis import analyze_weight
from lowrank.report.page.page_data import PageData, page_data_of
from lowrank.results.forecast import Prediction, TradeOff
from lowrank.results.report import Report
from lowrank.results.sweep import Point, Sweep

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>document.title='taken'</script>",
    "layers.0.<img src=x onerror=\"document.title='taken'\">",
    'layers.1." onmouseover="document.title=\'taken\'" x="',
    "layers.1.</title></svg><b>bold</b>",
    "layers.2.{{ 7 * 7 }}{% raw %}",
    "layers.2.\u202e\x1b[31m\x00&amp;",
    "<!--",
)
KINDS = ("attention.query", "attention.value", "attention.output", "mlp.up")


def block_names(count: int) -> list[str]:
    """Names of so many weights, four a block."""
    return [f"encoder.layer.{i // 4}.{KINDS[i % 4]}.weight" for i in range(count)]


def analysis_of(names: Sequence[str], rank: int = 24, data: bool = True) -> Analysis:
    """Weights of these names, all alike, with what a model leaves as it is."""
    weights = [Weight(name, rank, rank + 8, "float32", "projection", (Layer(name, "linear"),)) for name in names]
    rng, matrix = np.random.default_rng(0), decaying(rank, rank + 8, power=0.7)
    grams = [Gram.of("input", inputs(rng, 64, rank + 8, 100.0)) for _ in range(2)]
    made = analyze_weight(weights[0], matrix, Folds(*grams) if data else None)
    skips = (
        Skip("embeddings.word.weight", (64, 24), "an embedding table; --targets embeddings adds it"),
        Skip(
            "pooler.dense.weight",
            (24, 24),
            "outside the repeated blocks, so treated as an output head; --targets head adds it",
        ),
    )
    return Analysis(
        tuple(replace(made, weight=weight) for weight in weights),
        skips=skips,
        source={"path": "/models/tiny", "kind": "huggingface", "fingerprint": "f0"},
        settings={"targets": ["projections"], "calibration": {"text": "words.txt", "samples": 60, "hash": "c0"}},
        fingerprint="a0",
        notes=("a note",),
    )


def report_of(analysis: Analysis, plan: Plan, **changes: Any) -> Report:
    """What might have been measured."""
    before, after = analysis.dense_params, plan.cost
    rest = sum(int(np.prod(skip.shape)) for skip in analysis.skips) + 100
    whole = dict(
        targets={"params_before": before, "params_after": after, "keep_ratio": after / before},
        model={
            "params_before": before + rest,
            "params_after": after + rest,
            "bytes_before": 4 * (before + rest),
            "bytes_after": 4 * (after + rest),
            "macs_before": before,
            "macs_after": after,
        },
        budget={"kind": "params", "limit": 0.5, "reached": after / before},
        error={"relative": 0.1, "per_weight": {}},
        onnx={"profile": "portable", "dtype": "int8", "fused": {}, "rounding_error": 0.02},
        parity={"max_abs": 1e-6, "relative": 1e-7, "cases": []},
        latency={
            "dense_ms": 10.0,
            "compressed_ms": 4.0,
            "dense_rounded_to": "int8",
            "dense_rounded_ms": 5.0,
            "speedup": 2.5,
            "threads": 1,
            "cores": 2,
            "shapes": ["1 x 128"],
            "dense_onnx_bytes": 4_000_000,
            "dense_rounded_onnx_bytes": 1_000_000,
            "compressed_onnx_bytes": 600_000,
        },
        quality={"relative_error": 0.1, "cosine": 0.99, "samples": 6.0, "data": "samples that nothing saw"},
        healing=[
            {
                "before": 0.2,
                "after": 0.1,
                "kept": True,
                "steps": 30,
                "unit": "steps",
                "curve": [(10.0, 0.15), (20.0, 0.12), (30.0, 0.1)],
                "problems": [],
            }
        ],
        skipped=[{"name": s.name, "shape": list(s.shape), "reason": s.reason} for s in analysis.skips],
        notes=["a note of the report"],
        files={"model.onnx": 600_000},
        seconds={"analyze": 3.0, "export": 1.5},
        provenance={
            "command": ["/usr/bin/lowrank", "compress", "my model", "--budget", "0.5"],
            "versions": {"lowrank": "0.1.0", "numpy": "2.0"},
            "plan": "b0",
        },
    )
    return Report.from_json({**whole, **changes})


def plan_of(analysis: Analysis, keep: float = 0.5) -> Plan:
    """What the default selector chooses."""
    return Knapsack().select(analysis, Budget.params(keep))


def point(name: str, size: int, ms: float, quality: float, on_front: bool = True) -> Point:
    """A point of a sweep, with a name that may be anything."""
    measures = {"bytes": size, "gzip_bytes": size, "ms": ms, "quality": quality, "drop": 0.9 - quality}
    rest = {"params": size, "zeros": None, "minutes": None, "low": None, "high": None}
    return Point(name=name, method="dense", keep=None, dtype="float32", on_front=on_front, **measures, **rest)


SWEEP = Sweep(
    task={"name": "sts:<b>", "metric": "spearman <i>", "higher_is_better": True},
    shape="1 x 128",
    points=[
        point("dense", 4_000_000, 10.0, 0.9),
        point("dense-int8 <b>", 1_000_000, 5.0, 0.89),
        point("lowrank-0.5-int8", 600_000, 4.0, 0.85),
        point("pruned", 4_000_000, 10.0, 0.7, False),
    ],
    left_out=[],
    advice=[],
    seconds={},
    identity={},
    provenance={},
)


def page_with(names: Sequence[str], rank: int = 24, uniform: bool = False, **changes: Any) -> PageData:
    """All there is to show of a run with weights of these names; with uniform ranks in no time for many."""
    analysis = analysis_of(names, rank)
    plan = Uniform().select(analysis, Budget.params(0.5)) if uniform else plan_of(analysis)
    chosen = Prediction(keep=plan.keep_ratio, error=predicted_error(analysis, plan))
    points = [Prediction(keep=keep, error=0.5 - keep / 2) for keep in (0.2, 0.5, 0.8)]
    trade_off = TradeOff(analysis=analysis.fingerprint, of_output=False, points=points)
    report = report_of(analysis, plan, **changes)
    return page_data_of(analysis, plan, report, chosen=chosen, trade_off=trade_off, sweep=SWEEP)
