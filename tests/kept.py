"""What takes long to fetch or to build, and is kept for the next run of the tests."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def made_once(name: str) -> Iterator[Path]:
    """A folder that is kept for the next run, and that one process at a time looks after."""
    folder = Path(tempfile.gettempdir()) / f"lowrank-{name}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
