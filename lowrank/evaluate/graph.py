"""ONNX files as models that can be measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lowrank.backends.base import Outputs
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.memory import batches_at_once
from lowrank.backends.ort_session import floating, run_session, start_session
from lowrank.errors import ExportError, first_line
from lowrank.parallel import threads


class FileModel:
    """The outputs of a file in ONNX Runtime."""

    def __init__(self, path: Path, signature: Signature) -> None:
        """Open a session.

        Args:
            path: the file.
            signature: of the model that it was written from, for the names of its outputs.

        Raises:
            ExportError: if ONNX Runtime refuses the file.
        """
        self._session, self.signature, self.path = open_graph(path), signature, path

    def outputs(self, feed: Feed) -> Outputs:
        """All outputs of one forward pass."""
        return self._named(feed, self.signature.output_names)

    def outputs_of(self, feeds: Sequence[Feed]) -> Iterator[Outputs]:
        """All outputs for each of some batches, in their order; as many are run at once as there are cores."""
        sizes = (size for output in self._session.get_outputs() for size in output.shape if isinstance(size, int))
        with threads(batches_at_once(max(sizes, default=1))) as pool:
            yield from pool.map(self.outputs, feeds)

    def run(self, feed: Feed) -> NDArray[Any]:
        """The output that the model is about."""
        return self._named(feed, [self.signature.output])[self.signature.output]

    def _named(self, feed: Feed, names: Sequence[str]) -> Outputs:
        try:
            found = run_session(self._session, names, feed)
            return {name: floating(output) for name, output in zip(names, found, strict=True)}
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
