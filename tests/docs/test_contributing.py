"""CONTRIBUTING.md, followed to the letter: its layer type and its selector compress a model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from blocks import GIVEN, ROOT, Block, Reader, commands, read_page
from conftest import Outcome

PAGE = read_page(ROOT / "CONTRIBUTING.md")
SPLIT = next(i for i, block in enumerate(PAGE.blocks) if (block.title or "").startswith("lowrank/"))
"""Where the page begins to change the package."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("forget_written_modules")
def test_a_layer_type(folder: Path, cli: Callable[..., Outcome]) -> None:
    reader = Reader(folder, cli)
    for block in PAGE.blocks[:SPLIT]:
        if block.reason is None:
            reader.run(block)
    import mine  # pyright: ignore[reportMissingImports] - what the page has written

    small, dense = reader.names["small"], mine.build()
    dense.load_state_dict(torch.load(folder / "model.pt", weights_only=True))  # noqa: TID251
    layers = {name: layer for name, layer in small.named_modules() if isinstance(layer, mine.LowRankGain)}
    assert layers
    for name, layer in layers.items():
        assert layer.gain.equal(dense.get_submodule(name).gain)
    report = json.loads((folder / "run/report.json").read_text())
    assert report["parity"]["relative"] < 1e-5
    assert report["targets"]["keep_ratio"] <= 0.5
    # At full rank the layer that the page writes is the dense one.
    whole = mine.LowRankGain(dense[0].up, 32, bias=True)
    u, s, v = torch.linalg.svd(dense[0].up.weight.detach().T, full_matrices=False)
    whole.left.weight.data, whole.right.weight.data, whole.bias.data = u * s, v, dense[0].up.bias.data
    x = torch.randn(3, 32)
    torch.testing.assert_close(whole(x), dense[0].up(x), atol=1e-5, rtol=1e-4)


def apply(change: Block, root: Path) -> None:
    """A diff whose first line names the file: lines with a plus go after the line before them."""
    head, *lines = change.code.splitlines()
    path = root / head.removeprefix("--- ")
    text, after = path.read_text(encoding="utf-8"), ""
    for line in lines:
        if line.startswith("+"):
            assert text.count(after) == 1, f"{path}: {after!r}"
            text = text.replace(after, f"{after}{line[1:]}\n")
        after = f"{line[1:]}\n"
    path.write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_a_selector(folder: Path, cli: Callable[..., Outcome]) -> None:
    """In a copy of the package, which another process runs."""
    shutil.copytree(ROOT / "lowrank", folder / "lowrank", ignore=shutil.ignore_patterns("__pycache__"))
    GIVEN["my-model"](folder)
    for block in PAGE.blocks[SPLIT:]:
        if block.language == "diff":
            apply(block, folder)
        elif block.title is not None:
            Reader(folder, cli).run(block)
        elif block.language == "sh" and block.reason is None:
            for words in commands(block):
                told = subprocess.run(
                    [sys.executable, "-m", *words, "--no-timing"],
                    cwd=folder,
                    env={**os.environ, "PYTHONPATH": str(folder)},
                    capture_output=True,
                    text=True,
                )
                assert told.returncode == 0, told.stderr
    plan = json.loads((folder / "chosen/plan.json").read_text())
    assert plan["selector"]["type"] == "effective"
    report = json.loads((folder / "chosen/report.json").read_text())
    assert 0.4 < report["targets"]["keep_ratio"] <= 0.5
    assert report["parity"]["relative"] < 1e-5
