"""Operators timed here, and by a script that knows nothing of this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import write_text

from lowrank.core.selection.timings import Timings
from lowrank.edge import timing_script


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_script, "SECONDS", 0.0)


@pytest.mark.parametrize("dtype", ["none", "int8"])
def test_a_table_of_this_machine(cli: Any, tmp_path: Path, bert_folder: Path, dtype: str) -> None:
    path = tmp_path / "table.json"
    done = cli("bench", bert_folder, "--table", path, "--tokens", 16, "--quantize", dtype)
    assert done.code == 0 and "operators" in done.out, done.err
    table = Timings.from_json(json.loads(path.read_text()))
    assert table.whole and table.tokens == 16 and table.runtime.startswith("onnxruntime")
    assert {"product", "concat", "activation", "scores", "mixture"} <= set(table.points)
    assert table.product(32, 32) > 0 and table.product(32, 64) > 0


@pytest.mark.slow
def test_a_table_of_another_machine(cli: Any, tmp_path: Path, bert_folder: Path) -> None:
    script, path, run = tmp_path / "measure.py", tmp_path / "table.json", tmp_path / "run"
    assert cli("bench", bert_folder, "--script", script).code == 0
    assert cli("export", bert_folder, "-o", tmp_path / "dense").code == 0
    guard = (
        "import sys, runpy\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torch', 'lowrank', 'onnx'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"sys.argv = ['measure.py', {str(path)!r}, {str(tmp_path / 'dense' / 'model.onnx')!r}]\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", guard], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The graph's fixed costs are most of so tiny a model: the budget is one that only they leave room for.
    content = json.loads(path.read_text())
    assert content["whole"] > 0
    content["whole"] = None
    path.write_text(json.dumps(content))
    text = write_text(tmp_path / "text.txt", 60)
    done = cli("compress", bert_folder, "--calib", text, "--latency", "0.9", "--table", path, "--no-timing", "-o", run)
    assert done.code == 0, done.err
    plan = json.loads((run / "plan.json").read_text())
    assert plan["budget"] == {"kind": "latency", "limit": 0.9} and plan["budget_reached"] <= 0.9
    assert plan["selector"]["timings"]["tokens"] == 64 and "points" not in plan["selector"]["timings"]


def test_what_is_missing_is_said(cli: Any, tmp_path: Path, bert_folder: Path) -> None:
    neither = cli("bench", bert_folder)
    assert neither.code == 2 and "--table" in neither.err
    four = cli("bench", bert_folder, "--table", tmp_path / "t.json", "--quantize", "nbits4")
    assert four.code == 1 and "float32, int8, int4" in four.err
