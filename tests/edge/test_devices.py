"""Other processors, emulated, JavaScript, a browser, C++: what is written gives the same numbers there."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from builders import tiny_bert_folder
from kept import TOOLS, javascript, made_once

from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.onnx.save import load_whole, save_model
from lowrank.backends.ort_session import typed
from lowrank.edge import standalone
from lowrank.edge.graph_file import fit_file
from lowrank.edge.ort_format import write_ort
from lowrank.edge.target import Target
from tools.browser import UNPACKED

pytestmark = [
    pytest.mark.device,
    pytest.mark.slow,
]

EXACT = {"portable": 1e-4, "beside": 1e-4, "fused": 1e-4, "fp16": 1e-4}
ROUNDED = {"int8": 5e-2, "int4": 5e-2, "nbits4": 5e-2}
debian = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs Debian or Ubuntu")
npm = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js with npm")


def python_of(machine: str) -> Path:
    with made_once(machine) as folder:
        if not (folder / "python").exists():
            command = [sys.executable, str(TOOLS / "arm.py"), machine, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(done.stderr.strip().splitlines()[-1])
    return folder / "python"


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
        "beside": Target(),
        "fused": Target(profile="ort"),
        "int8": Target(dtype="int8"),
        "fp16": Target(dtype="float16"),
        "int4": Target(dtype="int4"),
        "nbits4": Target(profile="ort", dtype="nbits4"),
    }.items():
        path = folder / f"{name}.onnx"
        backend.write_onnx(path)
        fit_file(path, target, signature, [signature.example(8, 16, seed) for seed in range(3)])
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        if name == "beside":
            save_model(load_whole(path), path, beside=True)
        np.save(folder / f"{name}.npy", session.run([signature.output], typed(session, feed))[0])
        if name in ("fused", "int8"):
            write_ort(path, folder)
    given = {name: {"dims": list(values.shape), "data": values.ravel().tolist()} for name, values in feed.items()}
    (folder / "in.json").write_text(json.dumps(given))
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


@pytest.mark.parametrize(("name", "tolerance"), [*EXACT.items(), *ROUNDED.items()])
@debian
def test_arm64(name: str, tolerance: float, files: Path) -> None:
    there, here = run(python_of("arm64"), files, name)
    assert np.abs(there - here).max() < tolerance * np.abs(here).max()


@pytest.mark.parametrize(("name", "tolerance"), [("portable", 1e-4), ("int8", 5e-2), ("int4", 5e-2)])
@debian
def test_armv7(name: str, tolerance: float, files: Path) -> None:
    there, here = run(python_of("armv7"), files, name)
    assert np.abs(there - here).max() < tolerance * np.abs(here).max()


@npm
@pytest.mark.parametrize("kind", ["web", "node"])
def test_javascript(kind: str, files: Path) -> None:
    models = {f"{name}.onnx": tolerance for name, tolerance in {**EXACT, **ROUNDED}.items()}
    for model, tolerance in {**models, "fused.ort": 1e-4, "int8.ort": 5e-2}.items():
        out = files / f"{model}-{kind}.json"
        command = ["node", "run.mjs", kind, str(files / model), str(files / "in.json"), str(out)]
        done = subprocess.run(command, cwd=javascript(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        same(out, files, model, tolerance)


@npm
def test_transformers_js_finds_a_run(tmp_path: Path) -> None:
    """In the Hub's layout, by its own names, with the numbers beside the graph and without."""
    from transformers import AutoModel, AutoTokenizer

    import lowrank

    dense, run, hub = tiny_bert_folder(tmp_path / "dense"), tmp_path / "run", tmp_path / "hub"
    lowrank.compress(dense, 0.5, output=run, settings=lowrank.Settings(calib="none"), latency=False)
    texts = ["the cat sat", "a very big dog ran under the red house and the garden"]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    tokens = AutoTokenizer.from_pretrained(dense)(texts, padding=True, return_tensors="pt")
    mask = tokens["attention_mask"][..., None]
    states = AutoModel.from_pretrained(run / "model")(**tokens)[0].detach()
    here = (states * mask).sum(1) / mask.sum(1)
    here = (here / here.norm(dim=-1, keepdim=True)).numpy()
    for beside in (False, True):
        if beside:
            save_model(load_whole(run / "model.onnx"), run / "model.onnx", beside=True)
        lowrank.export_hub(run, hub, dtypes=["int8"])
        assert (hub / "onnx/model.onnx_data").exists() == beside
        for dtype, tolerance in {"fp32": 1e-4, "int8": 0.1, "q8": 0.1}.items():
            out = tmp_path / "out.json"
            command = ["node", "feature.mjs", hub, dtype, tmp_path / "texts.json", out]
            folder = javascript("transformersjs", "@huggingface/transformers")
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            found = json.loads(out.read_text())
            there = np.array(found["data"]).reshape(found["dims"])
            assert np.abs(there - here).max() < tolerance, (dtype, beside)


@npm
def test_transformers_js_generates(tmp_path: Path) -> None:
    import torch

    import lowrank

    dense, run, hub = tiny_bert_folder(tmp_path / "dense", "llama"), tmp_path / "run", tmp_path / "hub"
    settings = lowrank.Settings(calib="none")
    lowrank.compress(dense, 0.5, output=run, settings=settings, latency=False, with_past=True)
    lowrank.export_hub(run, hub)
    ids, count, out = [5, 9, 2, 44, 7], 9, tmp_path / "out.json"
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    command = ["node", "generate.mjs", hub, str(count), tmp_path / "ids.json", out]
    folder = javascript("transformersjs", "@huggingface/transformers")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    here = lowrank.load(run).generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)  # type: ignore[union-attr]
    assert json.loads(out.read_text()) == here[0].tolist()


def same(out: Path, files: Path, model: str, tolerance: float) -> None:
    """Nothing, if what was found elsewhere is what is found here, without padding."""
    keep = np.load(files / "in.npz")["attention_mask"] == 1
    found = json.loads(out.read_text())["last_hidden_state"]
    there = np.array(found["data"], np.float32).reshape(found["dims"])[keep]
    here = np.load(files / f"{Path(model).stem}.npy")[keep]
    assert np.abs(there - here).max() < tolerance * np.abs(here).max(), model


@npm
@debian
def test_a_browser(files: Path) -> None:
    runtime, installed = javascript() / "node_modules" / "onnxruntime-web", shutil.which("chromium")
    with made_once("chromium") as folder:
        program = installed or str(folder)
        for name, tolerance in {"beside": 1e-4, "int8": 5e-2, "int4": 5e-2}.items():
            out = files / f"{name}-browser.json"
            command = [sys.executable, str(TOOLS / "browser.py"), str(runtime), program, str(files / f"{name}.onnx")]
            done = subprocess.run([*command, str(files / "in.json"), str(out)], capture_output=True, text=True)
            if done.returncode and not (folder / UNPACKED).exists() and installed is None:
                pytest.skip(done.stderr.strip().splitlines()[-1])
            assert done.returncode == 0, done.stderr
            same(out, files, f"{name}.onnx", tolerance)


@npm
@debian
@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs CMake and a compiler")
def test_cpp(files: Path, tmp_path: Path) -> None:
    built = javascript() / "node_modules" / "onnxruntime-node" / "bin" / "napi-v6" / "linux"
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine())
    if machine is None:
        pytest.skip("onnxruntime-node has no library for this processor")
    with made_once("headers") as folder:
        if not (folder / "include").exists():
            script = (
                "import sys; from pathlib import Path; from debian import call, fetch; folder = Path(sys.argv[1]); "
                "fetch(folder / 'apt', call('dpkg', '--print-architecture').strip(), 'trixie', "
                "('libonnxruntime-dev',), folder / 'root', needed=False); "
                "(folder / 'root/usr/include').rename(folder / 'include')"
            )
            folder.mkdir(exist_ok=True)
            done = subprocess.run([sys.executable, "-c", script, folder], cwd=TOOLS, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(done.stderr.strip().splitlines()[-1])
        root = tmp_path / "onnxruntime"
        shutil.copytree(folder / "include", root / "include")
    (root / "lib").mkdir()
    (root / "lib" / "libonnxruntime.so.1").symlink_to(built / machine / "libonnxruntime.so.1")
    source, build = TOOLS.parent / "examples" / "cpp", tmp_path / "build"
    for command in (["cmake", "-S", source, "-B", build, f"-DONNXRUNTIME_ROOT={root}"], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    feed = {"input_ids": np.array([[5, 6, 7]]), "attention_mask": np.ones((1, 3), np.int64)}
    for model in ("beside.onnx", "int4.onnx", "fused.ort"):
        done = subprocess.run([build / "tokens", files / model, "5", "6", "7"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        session = ort.InferenceSession(str(files / model), providers=["CPUExecutionProvider"])
        every = {"token_type_ids": np.zeros((1, 3), np.int64), **feed}
        here = session.run(None, {spec.name: every[spec.name] for spec in session.get_inputs()})[0]
        shape, numbers, time = done.stdout.strip().splitlines()
        assert shape == "last_hidden_state 1 3 32" and time.endswith(" ms")
        assert np.allclose([float(n) for n in numbers.split()], np.ravel(here)[:8], atol=5e-2), model
    failed = subprocess.run([build / "tokens", files / "none.onnx", "5"], capture_output=True, text=True)
    assert failed.returncode == 1 and "none.onnx" in failed.stderr


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="onnxruntime 1.17 has no wheel for this Python")
def test_the_oldest_runtime(files: Path) -> None:
    with made_once("onnxruntime-1.17") as folder:
        if not (folder / "onnxruntime").exists():
            wanted = ["onnxruntime==1.17.3", "numpy<2"]
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *wanted]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(done.stderr.strip().splitlines()[-1])
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for name, tolerance in {"portable": 1e-4, "beside": 1e-4, "fp16": 1e-4, "int8": 5e-2, "int4": 5e-2}.items():
        there, here = run(python, files, name)
        assert np.abs(there - here).max() < tolerance * np.abs(here).max(), name
    # What is for later runtimes is named there.
    script = [str(python), str(standalone.__file__), "--model", str(files / "nbits4.onnx"), "--time", "1"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode and "1.17.3 cannot load nbits4.onnx" in done.stderr and "--profile portable" in done.stderr
