"""Every architecture: analyze, compress at 0.5, save, load, export, parity; and the square.

The square: compressing in torch and exporting gives what exporting and compressing the graph gives, by the same plan.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, build

import lowrank
from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.onnx import OnnxBackend
from lowrank.core.plan import Plan
from lowrank.evaluate.parity import check_parity
from lowrank.pipeline.plans import factorize

pytestmark = pytest.mark.usefixtures("exporter")

CONVOLUTIONAL = {"resnet"}


FUSED = {"gpt2", "mingpt", "modernbert"}
"""Query, key and value are one weight in the dense graph and three in torch, so that no plan fits both."""


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.slow_but("bert", "gpt2")
def test_architecture(name: str, tmp_path: Path) -> None:
    targets = ("conv",) if name in CONVOLUTIONAL else ("projections",)
    settings = lowrank.Settings(calib="none", targets=targets)
    model = build(name)
    pretrained = hasattr(model, "save_pretrained")
    if pretrained:
        model.save_pretrained(tmp_path / "dense")
    source = tmp_path / "dense" if pretrained else model
    dense = open_model(source)
    assert isinstance(dense.signature, Signature), dense.signature
    analysis = lowrank.analyze(source, settings=settings)
    plan = lowrank.select(analysis, 0.5)
    assert plan.keep_ratio <= 0.5 and any(o.structure != "dense" for o in plan.options)
    small = dense.rewrite(factorize(dense, analysis, plan))
    (tmp_path / "model").mkdir()
    small.save(tmp_path / "model")
    loaded = dense.saved_in(tmp_path, dict)
    feed = small.signature.example(2, 9, padded=True)
    assert np.array_equal(loaded.run(feed), small.run(feed))

    loaded.write_onnx(tmp_path / "small.onnx")
    check_parity(loaded, tmp_path / "small.onnx")

    dense_output = dense.run(feed)
    ours = small.reference()(feed)[small.signature.output]
    assert np.abs(ours - dense_output).max() > 1e-3 * np.abs(dense_output).max(), "the plan must matter"
    if name in FUSED:
        return
    dense.write_onnx(tmp_path / "dense.onnx")
    graph = open_model(tmp_path / "dense.onnx")
    assert isinstance(graph, OnnxBackend)
    seen = lowrank.analyze(tmp_path / "dense.onnx", settings=lowrank.Settings(calib="none", targets=("all",)))
    same = Plan.from_json({**plan.to_json(), "analysis": seen.fingerprint}, seen, None)
    other = graph.rewrite(factorize(graph, seen, same))
    theirs = other.run(feed)
    assert np.abs(ours - theirs).max() <= 1e-4 * max(np.abs(ours).max(), 1e-6)


@pytest.mark.slow
def test_a_mixture_is_calibrated_and_factored_expert_by_expert(tmp_path: Path) -> None:
    model = build("mixtral")
    feed = {"input_ids": np.random.default_rng(0).integers(0, 64, (40, 12))}
    np.savez(tmp_path / "calib.npz", **feed, attention_mask=np.ones((40, 12), np.int64))
    settings = lowrank.Settings(calib=str(tmp_path / "calib.npz"))
    analysis = lowrank.analyze(model, settings=settings)
    stacks = [r for r in analysis.weights if r.weight.stack > 1]
    assert {r.weight.name.rsplit(".", 1)[1] for r in stacks} == {"gate_up_proj", "down_proj"}
    assert all(analysis.grams[r.weight.name].fit.tokens > 0 for r in stacks)
    report = lowrank.compress(model, 0.5, output=tmp_path / "run", settings=settings, latency=False)
    assert report.parity is not None and not report.problems
    with torch.no_grad():
        for record in stacks:
            assert record.error_curve[0] == pytest.approx(1.0)
