"""A model at a fiftieth of seven billion parameters, in less memory than its own bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")]

SHAPE = ["--layers", "10", "--hidden", "1024", "--intermediate", "2752", "--vocab", "4000"]
ROOM = 180_000_000
"""Bytes beside what the program itself takes; the model has 270 MB."""
TOOLS = Path(__file__).parents[2] / "tools"

LIMITED = """
import resource, sys
import psutil
import lowrank, lowrank.pipeline
from lowrank.pipeline import Execution, Settings

tiny, model, run, stream, stage = sys.argv[1:6]
plain = Settings(calib="none")
# What is imported and started on the way belongs to the program.
lowrank.compress(tiny, 0.5, output=f"{run}-{stage}", settings=plain, execution=Execution(stream=True))
data = psutil.Process().memory_info().data
resource.setrlimit(resource.RLIMIT_DATA, (data + %d, data + %d))
execution = Execution(stream=stream == "stream", memory=psutil.Process().memory_info().rss + %d)
if stage == "analyze":
    lowrank.analyze(model, output=run, settings=plain, execution=execution)
else:
    lowrank.compress(None, 0.5, output=run, execution=execution)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("scale")
    for name, shape in (("model", SHAPE), ("tiny", ["--layers", "2", "--hidden", "128", "--intermediate", "256"])):
        subprocess.run([sys.executable, str(TOOLS / "make_checkpoint.py"), str(base / name), *shape], check=True)
    return base / "tiny", base / "model"


def limited(folders: tuple[Path, Path], run: Path, how: str, stage: str) -> subprocess.CompletedProcess[str]:
    script = LIMITED % (ROOM, ROOM, ROOM)
    command = [sys.executable, "-c", script, *map(str, folders), str(run), how, stage]
    return subprocess.run(command, capture_output=True, text=True)


def test_less_memory_than_the_model_has_bytes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    size = sum(path.stat().st_size for path in folders[1].glob("*.safetensors"))
    assert size > 1.4 * ROOM
    for stage in ("analyze", "compress"):
        done = limited(folders, run, "stream", stage)
        assert done.returncode == 0, done.stderr[-2000:]
    sys.path.insert(0, str(TOOLS))
    from make_checkpoint import known_ranks

    known = known_ranks(10, 1024, 2752, 0)
    groups = json.loads((run / "plan.json").read_text())["groups"]
    off = np.array([group["rank"] - known[group["name"]] for group in groups])
    assert len(off) == len(known)
    assert off.min() >= 0 and off.max() <= 2


def test_the_limit_is_one(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Whole in memory the same model does not fit: the test above would notice."""
    done = limited(folders, tmp_path / "run", "whole", "analyze")
    assert done.returncode != 0
    assert any(sign in done.stderr for sign in ("memory", "Memory", "alloc"))
