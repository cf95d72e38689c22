"""ONNX files as models that can be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lowrank.backends.inputs import Feed
from lowrank.backends.ort_session import start_session, typed
from lowrank.errors import ExportError, first_line


class FileModel:
    """The main output of a file in ONNX Runtime."""

    def __init__(self, path: Path, output: str) -> None:
        """Open a session.

        Raises:
            ExportError: if ONNX Runtime refuses the file.
        """
        self._session, self._output, self.path = open_graph(path, 0), output, path

    def run(self, feed: Feed) -> NDArray[Any]:
        """One forward pass."""
        try:
            return self._session.run([self._output], typed(self._session, feed))[0]
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot run {self.path.name}: {first_line(error)}") from None


def open_graph(path: Path, threads: int = 1) -> Any:
    """A session of a file.

    Raises:
        ExportError: if ONNX Runtime refuses the file.
    """
    try:
        return start_session(path, threads=threads)
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot load {path}: {first_line(error)}; compress again") from None
