"""Graphs in engines beside ONNX Runtime: right means no further from the exact model than they are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from architectures import build
from builders import two_factors

from lowrank.backends import open_model
from lowrank.backends.base import signature_of
from lowrank.backends.inputs import Feed
from lowrank.backends.torch import ModuleBackend
from lowrank.edge import quantize
from lowrank.edge.graph_file import fit_file
from lowrank.edge.target import Dtype, Profile, Target

pytestmark = pytest.mark.slow
TARGETS: list[tuple[Profile, Dtype]] = [
    ("portable", "float32"),
    ("portable", "int8"),
    ("portable", "int4"),
    ("portable", "int3"),
    ("qdq", "int8"),
    ("qdq", "int4"),
]


def in_openvino(path: Path, feed: Feed) -> list[np.ndarray]:
    openvino = pytest.importorskip("openvino")
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    model: Any = openvino.Core().compile_model(str(path), "CPU", settings)
    names = {name for port in model.inputs for name in port.names}
    return list(model({name: array for name, array in feed.items() if name in names}).values())


def in_onnxruntime(path: Path, feed: Feed) -> list[np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {each.name: feed[each.name] for each in session.get_inputs()})


def apart(found: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """How far outputs are from others, as a share of these."""
    sizes = [np.square(each).sum() for each in exact]
    return float(np.sqrt(sum(np.square(a - b).sum() for a, b in zip(found, exact, strict=True)) / sum(sizes)))


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_openvino_computes_what_onnx_runtime_computes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(quantize, "LEAST", 100)
    dense: Any = open_model(build(name))
    assert isinstance(dense, ModuleBackend)
    wanted = [w for w in dense.weights if w.role == "projection" and w.is_linear]
    small = dense.rewrite({w.name: two_factors(dense.read(w.name), 16) for w in wanted[::2]})
    signature = signature_of(small)
    feeds = [signature.example(16, 12, seed) for seed in range(2)]
    feed = signature.example(2, 9, 5)
    exact: list[np.ndarray] = []
    for profile, dtype in TARGETS:
        path = tmp_path / f"{profile}-{dtype}.onnx"
        small.write_onnx(path)
        fit_file(path, Target(profile=profile, dtype=dtype), signature, feeds)
        exact = exact or in_onnxruntime(path, feed)
        ours, theirs = in_onnxruntime(path, feed), in_openvino(path, feed)
        if dtype == "float32":
            assert apart(theirs, ours) < 1e-5
        else:
            assert apart(theirs, exact) < 1.2 * apart(ours, exact), (profile, dtype)
