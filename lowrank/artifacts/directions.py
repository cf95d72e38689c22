"""Leading directions of weights that are decomposed once: a file for each, read when it is asked for."""

from __future__ import annotations

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
TENSOR = "directions"


@dataclass(frozen=True, slots=True)
class StoredDirections:
    """A folder of files with the leading directions of a model's weights.

    Any of the files may be missing, or the folder: what they would hold is not known then. It can be sent to a process
    that sees the folder.
    """

    folder: Path
    model: str
    """The fingerprint of the model; directions of another one are not known, either."""

    def get(self, name: str) -> Matrix | None:
        """Those of a weight as columns in float32; None if they are not known.

        Raises:
            ArtifactError: if their file is damaged.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            tensors, metadata = read_tensors(path)
            directions: Any = tensors[TENSOR].astype(np.float32)
            return directions if metadata == self._identity(name) else None
        except (ArtifactError, KeyError):
            raise ArtifactError(
                f"{path} is damaged; remove the folder {self.folder}, and weights are decomposed again"
            ) from None

    def store(self, weight: Weight, basis: Matrix) -> None:
        """Write the leading ones of all directions of a weight, more finely than the weight itself is stored."""
        if self.get(weight.name) is not None:
            # By a run that was stopped just after it.
            return
        kept = basis[:, : kept_of(weight)].astype(f"f{_width(weight)}")
        write_tensors(self._path(weight.name), {TENSOR: kept}, self._identity(weight.name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{hash_json(name)}.safetensors"

    def _identity(self, name: str) -> dict[str, str]:
        # One entry: the package orders several at random.
        return {"of": f"{self.model}: {name}"}


def kept_of(weight: Weight) -> int:
    """How many directions of a weight are kept."""
    return -(-weight.full_rank // SHARE)


def directions_bytes(weight: Weight) -> int:
    """Bytes of the directions of a weight that are kept."""
    return weight.full_rank * kept_of(weight) * _width(weight)


def _width(weight: Weight) -> int:
    """Of a number: float16 has more digits than bfloat16 and all types of 8 bits."""
    return 2 if weight.dtype == "bfloat16" or item_bytes(weight.dtype) == 1 else 4
