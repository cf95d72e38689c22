"""A Keras model with attention, written by Keras's own ONNX export, goes all the way."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from builders import read

import lowrank

pytestmark = pytest.mark.keras

EXPORT = """
import sys
import keras

keras.utils.set_random_seed(0)
layers = keras.layers
ids = keras.Input((None,), dtype="int32", name="ids")
x = layers.Embedding(40, 24)(ids)
for i in range(2):
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, 6)(x, x))
    h = layers.Dense(48, activation="gelu")(x)
    x = layers.LayerNormalization()(x + layers.EinsumDense("bth,ho->bto", output_shape=(None, 24), bias_axes="o")(h))
model = keras.Model(ids, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))
model(keras.ops.zeros((1, 8), "int32"))
shown = [keras.InputSpec(shape=(1, 8), dtype="int32", name="ids")]
model.export(sys.argv[1], format="onnx", verbose=False, input_signature=shown)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("keras") is None:
        pytest.skip("keras is not installed: pip install 'lowrank[keras]'")
    path = tmp_path_factory.mktemp("keras") / "m.onnx"
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    subprocess.run([sys.executable, "-c", EXPORT, path], check=True, capture_output=True, env=environment)
    return path


def test_every_dense_layer_is_found(exported: Path) -> None:
    analysis = lowrank.analyze(exported, settings=lowrank.Settings(calib="none"))
    # Query, key, value and output, two feed-forward layers, in each of two blocks; and the classifier.
    assert len(analysis.weights) == 13
    assert {r.weight.shape for r in analysis.weights} == {(24, 24), (48, 24), (24, 48), (5, 24)}


def test_compress_and_run(exported: Path, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 40, (40, 8))
    np.savez(tmp_path / "c.npz", ids=ids)
    settings = lowrank.Settings(calib="none")
    report = lowrank.compress(exported, 0.5, output=tmp_path / "run", settings=settings)
    assert not report.problems and report.targets.keep_ratio <= 0.5
    before, after = (ort.InferenceSession(p) for p in (exported, tmp_path / "run/model.onnx"))
    assert [i.name for i in after.get_inputs()] == [i.name for i in before.get_inputs()] == ["ids"]
    feed = {"ids": ids[:1].astype(np.int32)}
    dense, small = before.run(None, feed)[0], after.run(None, feed)[0]
    assert small.shape == dense.shape and np.isfinite(small).all() and not np.allclose(dense, small)
    assert read(tmp_path / "run/report.json")["parity"]["relative"] < 1e-4
