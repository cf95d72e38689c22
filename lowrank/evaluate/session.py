"""Sessions of the files that are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowrank.backends.session import start_session
from lowrank.errors import ExportError, first_line


def open_session(path: Path, threads: int = 1) -> Any:
    """A session of a file.

    Raises:
        ExportError: if ONNX Runtime refuses the file.
    """
    try:
        return start_session(path, threads=threads)
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot load {path}: {first_line(error)}; compress again") from None
