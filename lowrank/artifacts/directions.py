"""Leading directions of weights that are decomposed once: a file for each, read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.artifacts.files import hash_json, read_tensors, write_tensors
from lowrank.core.cost import item_bytes
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.weight import Weight
from lowrank.errors import ArtifactError

DIRECTIONS_FOLDER = "directions"
"""The folder of files with directions, beside a run's analysis."""
SHARE = 2
"""One direction in so many is kept, the leading ones: more are hardly ever asked for."""


@dataclass(frozen=True, eq=False)
class StoredDirections(Mapping[str, Matrix]):
    """Leading directions by weight name, as columns in float32. Files may be removed: what they held is not known then.

    It can be sent to a process that sees the folder.
    """

    folder: Path
    files: Mapping[str, str]
    """The file of each weight."""

    def __getitem__(self, name: str) -> Matrix:
        path = self.folder / self.files[name]
        if not path.exists():
            raise KeyError(name)
        try:
            directions: Any = read_tensors(path)[0]["directions"].astype(np.float32)
            return directions
        except (ArtifactError, KeyError):
            raise ArtifactError(
                f"{path} is damaged; remove the folder {self.folder}, and weights are decomposed again"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def directions_file(weight: Weight) -> str:
    """The name of the file of a weight's directions."""
    return f"{hash_json(weight.name)}.safetensors"


def store_directions(folder: Path, weight: Weight, basis: Matrix) -> None:
    """Write the leading directions of a weight, about as finely as the weight itself is stored.

    Args:
        folder: of such files.
        weight: whose they are.
        basis: all of them, as columns.
    """
    kept = basis[:, : _count(weight)].astype(f"f{_width(weight)}")
    write_tensors(folder / directions_file(weight), {"directions": kept}, {})


def directions_bytes(weight: Weight) -> int:
    """Bytes of the file of a weight's directions."""
    return weight.full_rank * _count(weight) * _width(weight)


def _count(weight: Weight) -> int:
    return -(-weight.full_rank // SHARE)


def _width(weight: Weight) -> int:
    return 2 if item_bytes(weight.dtype) <= 2 else 4
