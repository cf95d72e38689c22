"""What takes long to fetch or to build, and is kept for the next run of the tests."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@contextmanager
def made_once(name: str) -> Iterator[Path]:
    """A folder that is kept for the next run, and that one process at a time looks after."""
    folder = Path(tempfile.gettempdir()) / f"lowrank-{name}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def javascript(tool: str = "javascript", package: str = "onnxruntime-node") -> Path:
    """A folder with a script and the package that it needs, made once."""
    with made_once(tool) as folder:
        folder.mkdir(exist_ok=True)
        for path in (TOOLS / tool).iterdir():
            shutil.copyfile(path, folder / path.name)
        if not (folder / "node_modules" / package).exists():
            # Its script would fetch a library for graphics cards.
            command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"npm: {done.stderr.strip().splitlines()[-1]}")
    return folder


def packages(name: str, *wanted: str) -> Path:
    """A folder with packages of Python that are not of this environment, made once: for `PYTHONPATH`, where they come
    before those of the same names here. What they need is from here."""
    with made_once(name) as folder:
        if not folder.exists():
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *wanted]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                shutil.rmtree(folder, ignore_errors=True)
                pytest.skip(f"pip: {done.stderr.strip().splitlines()[-1]}")
    return folder
