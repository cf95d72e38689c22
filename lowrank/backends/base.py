"""Backend: a model in one format. It names its weights, reads one, takes replacements back, and saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lowrank.core.linalg import Matrix
from lowrank.core.structures.base import Replacement
from lowrank.core.weight import Skip, Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How to build a model whose file does not say, and what it may run."""

    arch: str | None = None
    """`package.module:factory`: a function without arguments that gives the dense `nn.Module`."""
    config: str | None = None
    """A Hugging Face config.json that says how to build the model."""
    unsafe_pickle: bool = False
    """Allow a file to run code of its own while it is read."""

    def provenance(self) -> dict[str, Any]:
        """What must be the same for a second opening to give the same model. Never the permission to unpickle."""
        return {"arch": self.arch, "config": self.config and str(Path(self.config).resolve())}


class Backend(Protocol):
    """A model in one format. It never computes a decomposition, and the core never touches what is inside it."""

    @property
    def source(self) -> Mapping[str, Any]:
        """Where the model came from (`path`, `kind`, `fingerprint`, ...)."""
        ...

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every matrix that can be replaced, in the model's order; ties are one weight."""
        ...

    @property
    def skips(self) -> tuple[Skip, ...]:
        """Every other tensor of two or more dimensions, and why it cannot."""
        ...

    @property
    def params(self) -> int:
        """Numbers in the whole model, shared ones counted once."""
        ...

    def read(self, name: str) -> Matrix:
        """One weight as a rows x cols float64 matrix.

        Raises:
            NonFiniteWeight: if it holds NaN or infinity.
        """
        ...

    def check_finite(self) -> None:
        """Nothing, if the numbers that running the model needs beside its weights are finite.

        Raises:
            NonFiniteWeight: with the first tensor's name.
        """
        ...

    def rewrite(self, replacements: Mapping[str, Replacement]) -> Backend:
        """A new backend whose model has the replacements in the weights' places; this one is unchanged."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model so that `lowrank.load(folder)` gives it back without the original."""
        ...
