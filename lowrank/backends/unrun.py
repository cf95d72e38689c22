"""What a backend answers whose model cannot be run as a whole: with the reason, and what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

from lowrank.backends.base import not_exported
from lowrank.backends.inputs import Feed, Signature
from lowrank.core.linalg.eigen import Matrix
from lowrank.errors import ExportError, UnsupportedModel


class Unrun:
    """The part of `Backend` that takes forward passes."""

    source: Mapping[str, Any]
    signature: Signature | str

    @property
    def refusal(self) -> str:
        """Why it cannot be run, and what to try."""
        raise NotImplementedError

    def refuse(self, *_: Any, **__: Any) -> Any:
        """What takes a forward pass is not possible.

        Raises:
            UnsupportedModel: always, with the reason.
        """
        raise UnsupportedModel(self.refusal)

    run = outputs = outputs_of = reference = otherwise_rounded = watching = swapped = changed = trials = refuse

    @property
    def jobs(self) -> int:
        """One: there is nothing to run at once."""
        return 1

    @property
    def output_kind(self) -> Any:
        """Not known, since there is no output."""
        return self.refuse()

    @property
    def couplings(self) -> tuple[()]:
        """Empty: couplings are found by running the model."""
        return ()

    def bias(self, name: str) -> None:
        """None: the biases are not known, and stay as they are."""
        return None

    def check_finite(self) -> None:
        """Nothing to look at: the model is not run, and each weight is checked when it is read."""

    def write_onnx(self, path: Path, opset: int | None = None) -> NoReturn:
        """Not possible: a graph is checked by running the model."""
        raise not_exported(self.source, str(self.signature))

    def without_pivots(self) -> Self:
        """Itself: no graph is written of it."""
        return self

    def check_with_past(self) -> NoReturn:
        """Not possible: a graph is checked by running the model."""
        raise ExportError(f"--with-past cannot be had: {self.signature}; say how it is built with --arch or --config")

    def write_with_past(self, path: Path, opset: int | None = None) -> NoReturn:
        """Not possible: a graph is checked by running the model."""
        self.check_with_past()

    def curvature(self, feeds: Sequence[Feed], names: Sequence[str]) -> dict[str, Matrix]:
        """Empty: there are no gradients without a forward pass."""
        return {}

    def paired(self, small: Any, fit: Sequence[Feed], judge: Sequence[Feed]) -> None:
        """None: no refit without runs of the model."""
        return None
