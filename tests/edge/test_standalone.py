"""run.py beside a result: only numpy, onnxruntime and tokenizers, and a sentence for every bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lowrank
from lowrank.edge import standalone


@pytest.fixture
def run(tmp_path: Path, shared_bert_run: Path) -> Path:
    return shutil.copytree(shared_bert_run, tmp_path / "run")


def call(run: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    # Neither torch nor this package may be imported.
    guard = (
        "import sys, runpy\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torch', 'lowrank', 'onnx', 'transformers'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"sys.argv = ['run.py', *{list(map(str, arguments))!r}]\n"
        f"runpy.run_path({str(run / 'run.py')!r}, run_name='__main__')\n"
    )
    return subprocess.run([sys.executable, "-c", guard], capture_output=True, text=True)


@pytest.mark.slow
def test_text(run: Path) -> None:
    done = call(run, "the cat sat", "the dog ran under a tree")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "1.0000  the cat sat" and -1 <= float(second.split()[0]) < 1


def test_arrays(run: Path, tmp_path: Path) -> None:
    ids = np.array([[2, 5, 6, 3], [2, 7, 3, 0]])
    feed = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
    np.savez(tmp_path / "in.npz", **feed)
    done = call(run, "--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npz")["last_hidden_state"]
    with torch.no_grad():
        wanted = lowrank.load(run)(**{name: torch.from_numpy(values) for name, values in feed.items()})
    np.testing.assert_allclose(found[0], wanted.last_hidden_state[0], atol=1e-4)


def test_time(run: Path) -> None:
    done = call(run, "--time", 3, "--batch", 2, "--sequence", 16)
    told = json.loads(done.stdout)
    assert told["ms"] > 0 and told["peak_mb"] >= told["before_mb"] > 0


def test_bad_inputs_are_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "few.npz", input_ids=np.ones((1, 4), np.int64))
    np.savez(
        tmp_path / "flat.npz", **{n: np.ones(4, np.int64) for n in ("input_ids", "attention_mask", "token_type_ids")}
    )
    np.savez(
        tmp_path / "high.npz", **{n: np.full((1, 4), 9999) for n in ("input_ids", "attention_mask", "token_type_ids")}
    )
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    for arguments, told in (
        (["--inputs", tmp_path / "none.npz"], "none.npz"),
        (["--inputs", tmp_path / "text.npz"], "no .npz of arrays"),
        (["--inputs", tmp_path / "few.npz"], "also reads attention_mask"),
        (["--inputs", tmp_path / "flat.npz"], "has 1 axes"),
        (["--inputs", tmp_path / "high.npz"], "does not run on these inputs"),
        (["--model", tmp_path / "none.onnx", "text"], "keep run.py beside the model"),
        (["--model", tmp_path / "broken.onnx", "text"], "cannot load broken.onnx"),
        ([], "give some text"),
    ):
        done = call(run, *arguments)
        assert done.returncode != 0 and told in done.stderr and "Traceback" not in done.stderr, (arguments, done.stderr)


def test_what_is_told_of_several_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    scores = np.array([[0.0, 3, 1, 9], [5, 0, 1, 2]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    answers = {"start_logits": scores, "end_logits": scores[:, ::-1]}
    standalone.tell(["a", "b"], {"attention_mask": mask}, answers)
    # Of the first the end is searched from its beginning on, and not in the padding; so it is of the second.
    assert capsys.readouterr().out.splitlines() == ["a: tokens 1 to 2", "b: tokens 0 to 3"]
    standalone.tell(["a", "b"], {"attention_mask": mask}, {"pooled": np.ones(()), "logits": scores})
    assert capsys.readouterr().out.splitlines() == ["a: 3 (9.000)", "b: 0 (5.000)"]
    standalone.tell(["a"], {"attention_mask": mask[:1]}, {"scalar": np.ones(1)})
    assert capsys.readouterr().out.splitlines() == ["1.0000  a"]
