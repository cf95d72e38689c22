"""Reports: the JSON of version 0.1.0 is read, and written again as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lowrank.errors import ArtifactError
from lowrank.results.report import Report

FIGURES = {"relative_error": 0.1, "kl": 0.01, "agreement": 0.9, "samples": 6.0, "data": "random inputs"}
TASK = {"task": "sts:a.tsv", "metric": "spearman", "higher_is_better": True, "dense": 0.9, "compressed": 0.8}
WHOLE: dict[str, Any] = {
    "targets": {"params_before": 10, "params_after": 5, "keep_ratio": 0.5},
    "model": {f"{name}_{when}": 9 for name in ("params", "bytes", "macs") for when in ("before", "after")},
    "budget": {"kind": "plan", "limit": None, "reached": None},
    "error": {"relative": None, "per_weight": {"a": 0.1}},
    "onnx": {"profile": "ort", "dtype": "int8", "fused": {"norm": 2}, "dense_fused": {"norm": 3}},
    "parity": None,
    "latency": {
        "dense_ms": 2.0,
        "compressed_ms": 1.0,
        "speedup": 2.0,
        "threads": 1,
        "cores": None,
        "shapes": ["1"],
        "dense_onnx_bytes": 9,
        "compressed_onnx_bytes": 5,
    },
    "quality": {
        **FIGURES,
        "dense_rounded": {"dtype": "int8", **FIGURES},
        "tasks": [{**TASK, "drop": 0.1, "low": None, "high": None, "samples": 9, "resamples": 0, "confidence": 0.95}],
    },
    "healing": [
        {
            **dict.fromkeys(("minutes", "steps", "seed", "device", "adapter", "initial", "fold", "data")),
            **{"before": 0.2, "after": 0.1, "rate": None, "batch": 4, "curve": [[1.0, 0.1]], "problems": []},
            **{"kept": True, "unit": "minutes"},
        }
    ],
    "cut": [
        {"run": "r0", "from": "/run", "keep_before": 0.5, "keep_after": 0.3, "healed": None, "predicted": {}}
        | {"weights": 0.1, "quality": FIGURES, "as_it_was": {}}
    ],
    "skipped": [{"name": "b", "shape": [2, 3], "reason": "a bias"}],
    "notes": ["a note"],
    "unfit": [],
    "problems": [],
    "files": {"model.onnx": 5},
    "seconds": {"analyze": 1.0},
    "provenance": {"command": ["lowrank"], "versions": {}, "processor": "x", "refit": True},
}


def test_a_report_is_written_as_it_was_read() -> None:
    report = Report.from_json({"schema": "lowrank.report/1.0", **WHOLE})
    assert report.targets.keep_ratio == report.targets["keep_ratio"] == 0.5
    assert report.target.dtype == "int8" and report.tasks[0].compressed == 0.8 and report.cut[0].from_ == "/run"
    assert list(report.to_json()) == list(WHOLE)
    assert json.dumps(report.to_json(), sort_keys=True) == json.dumps(WHOLE, sort_keys=True)


def test_unknown_keys_stay_and_parts_may_be_missing() -> None:
    few = {name: WHOLE[name] for name in ("targets", "model", "budget")}
    report = Report.from_json({**few, "error": {"relative": 0.1, "new": 1}, "quality": {"bleu": 0.5}})
    assert report.error["new"] == 1 and report.quality is not None and report.quality.figures == {"bleu": 0.5}
    assert report.latency is None and report.healing == []
    with pytest.raises(ArtifactError, match="report.json is not whole"):
        Report.from_json({**few, "error": []})
    with pytest.raises(ArtifactError, match="report.json is not whole"):
        Report.from_json(few)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"files": None}, "files is 'None'"),
        ({"targets": {"params_before": "many", "params_after": 5, "keep_ratio": 0.5}}, "params_before is 'many'"),
        ({"healing": [{"curve": [[1.0, "low"]]}]}, "curve is"),
        ({"onnx": {"profile": "foo"}}, "profile is 'foo'"),
        ({"notes": [3]}, "notes is"),
    ],
)
def test_values_of_another_type_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        Report.from_json({**WHOLE, **change})
