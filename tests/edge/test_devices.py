"""Other processors, emulated: what is written gives the same numbers there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from builders import tiny_bert_folder

from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.session import typed
from lowrank.edge import Target, fit_file, standalone, write_onnx

pytestmark = [
    pytest.mark.device,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs Debian or Ubuntu"),
]

TOOL = Path(__file__).parents[2] / "tools" / "arm.py"


def python_of(machine: str) -> Path:
    """Made once, and kept for the next run."""
    folder = Path(tempfile.gettempdir()) / f"lowrank-{machine}"
    command = folder / "python"
    if not command.exists():
        done = subprocess.run([sys.executable, str(TOOL), machine, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(done.stderr.strip().splitlines()[-1])
    return command


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in every type, padded inputs for it, and what they give here."""
    folder = tmp_path_factory.mktemp("device")
    backend = open_model(str(tiny_bert_folder(folder / "bert")))
    signature = backend.signature
    assert isinstance(signature, Signature)
    feed = signature.example(3, 9, padded=True)
    np.savez(folder / "in.npz", **feed)
    for name, target in {
        "portable": Target(),
        "fused": Target(profile="ort"),
        "int8": Target(dtype="int8"),
        "fp16": Target(dtype="float16"),
        "int4": Target(profile="ort", dtype="int4"),
    }.items():
        path = folder / f"{name}.onnx"
        write_onnx(backend, path)
        fit_file(path, target, signature, [signature.example(8, 16, seed) for seed in range(3)])
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        np.save(folder / f"{name}.npy", session.run([signature.output], typed(session, feed))[0])
    return folder


def run(python: Path, files: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What a file gives there and here, without padding."""
    out = files / f"{name}-{python.parent.name}.npz"
    script = [str(python), str(standalone.__file__), "--model", str(files / f"{name}.onnx")]
    done = subprocess.run(
        [*script, "--inputs", str(files / "in.npz"), "--outputs", str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-500:]
    keep = np.load(files / "in.npz")["attention_mask"] == 1
    return np.load(out)["last_hidden_state"][keep], np.load(files / f"{name}.npy")[keep]


@pytest.mark.parametrize(
    ("name", "tolerance"), [("portable", 1e-4), ("fused", 1e-4), ("fp16", 1e-4), ("int8", 5e-2), ("int4", 5e-2)]
)
def test_arm64(name: str, tolerance: float, files: Path) -> None:
    there, here = run(python_of("arm64"), files, name)
    assert np.abs(there - here).max() < tolerance * np.abs(here).max()


@pytest.mark.parametrize(("name", "tolerance"), [("portable", 1e-4), ("int8", 5e-2)])
def test_armv7(name: str, tolerance: float, files: Path) -> None:
    there, here = run(python_of("armv7"), files, name)
    assert np.abs(there - here).max() < tolerance * np.abs(here).max()
