"""The graph of a dense model, which several steps of one piece of work time and round."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from functools import cached_property
from pathlib import Path

from lowrank.backends.base import Backend
from lowrank.backends.onnx.save import copy_graph
from lowrank.results.report import ONNX_FILE


class DenseGraph:
    """Traces a model when its graph is first asked for, and once, since that takes seconds.

    Args:
        dense: the model, which must not change.
    """

    def __init__(self, dense: Backend) -> None:
        self.dense = dense

    def write(self, path: Path) -> None:
        """Write the graph as a file that may be changed; its numbers may lie beside it as `model.onnx.data`.

        Raises:
            ExportError: if the model cannot be traced.
        """
        copy_graph(self._traced, path)

    @cached_property
    def _traced(self) -> Path:
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder) / ONNX_FILE
        self.dense.write_onnx(path)
        return path
