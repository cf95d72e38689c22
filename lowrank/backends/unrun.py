"""What a backend answers whose model cannot be run as a whole: with the reason, and what to try."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lowrank.backends.base import Change, not_exported
from lowrank.backends.inputs import Feed, Signature
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.truncation.gram import Gram, Side
from lowrank.errors import ExportError, UnsupportedModel


class Unrun:
    """The part of `Backend` that takes forward passes."""

    source: Mapping[str, Any]
    signature: Signature | str

    @property
    def refusal(self) -> str:
        """Why it cannot be run, and what to try."""
        raise NotImplementedError

    def _refuse(self) -> NoReturn:
        raise UnsupportedModel(self.refusal)

    @property
    def output_kind(self) -> NoReturn:
        """There is no output."""
        self._refuse()

    @property
    def couplings(self) -> tuple[()]:
        """None are known: they are found by running the model."""
        return ()

    def bias(self, name: str) -> None:
        """Not known: biases stay as they are."""
        return None

    def check_finite(self) -> None:
        """Nothing to look at: the model is not run, and each weight is checked when it is read."""

    def write_onnx(self, path: Path, opset: int | None = None) -> NoReturn:
        """Not possible: a graph is checked by running the model."""
        raise not_exported(self.source, str(self.signature))

    def write_with_past(self, path: Path, opset: int | None = None) -> NoReturn:
        """Not possible, as above."""
        raise ExportError(f"--with-past cannot be had: {self.signature}")

    def run(self, feed: Feed) -> NoReturn:
        """Not possible."""
        self._refuse()

    def reference(self) -> NoReturn:
        """Not possible."""
        self._refuse()

    def watching(
        self, sides: Mapping[str, Side], observe: Callable[[str, Gram], None], device: str = "cpu"
    ) -> NoReturn:
        """Not possible."""
        self._refuse()

    def swapped(self, changes: Mapping[str, Change]) -> NoReturn:
        """Not possible."""
        self._refuse()

    def changed(self, changes: Mapping[str, Change]) -> NoReturn:
        """Of no use: pruned weights are compared by running them."""
        self._refuse()

    def trials(self, feeds: Sequence[Feed], base: Mapping[str, Change] | None = None) -> NoReturn:
        """Not possible."""
        self._refuse()

    def curvature(self, feeds: Sequence[Feed], names: Sequence[str]) -> dict[str, Matrix]:
        """There are no gradients."""
        return {}

    def paired(self, small: Any, fit: Sequence[Feed], judge: Sequence[Feed]) -> None:
        """There is no refit."""
        return None
