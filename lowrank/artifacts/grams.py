"""Grams of models that are larger than memory: a file for each, read when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.artifacts.files import hash_json, read_metadata, read_tensors, write_tensors
from lowrank.core.analysis import Folds
from lowrank.core.truncation.gram import Gram
from lowrank.errors import ArtifactError, first_line

GRAMS_FOLDER = "grams"
"""Beside the analysis of a run."""


@dataclass(frozen=True, eq=False)
class StoredGrams(Mapping[str, Folds]):
    """Grams by weight name, as lower triangles in float32. It can be sent to a process that sees the folder."""

    folder: Path
    files: Mapping[str, str]
    """Of each weight; those that read the same have the same."""

    def __getitem__(self, name: str) -> Folds:
        arrays, metadata = read_tensors(self.folder / self.files[name])
        fit, held = (_unpacked(arrays, metadata, fold) for fold in ("fit", "held"))
        return Folds(fit, held)

    def facts(self) -> dict[str, Folds]:
        """All of them without their moments, which are not read."""
        none = {fold: np.zeros(0, np.float32) for fold in ("fit", "held")}
        known = {file: read_metadata(self.folder / file) for file in set(self.files.values())}
        return {
            name: Folds(*(_unpacked(none, known[file], fold) for fold in none)) for name, file in self.files.items()
        }

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def store_grams(folder: Path, name: str, folds: Folds) -> str:
    """Write the Grams of a weight; the file's name."""
    file = f"{hash_json(name)}.safetensors"
    arrays: dict[str, NDArray[Any]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for fold, gram in (("fit", folds.fit), ("held", folds.heldout)):
        arrays[fold] = gram.moment[np.tril_indices(len(gram.moment))].astype(np.float32)
        facts[fold] = {key: getattr(gram, key) for key in ("side", "tokens", "energy", "nonfinite")}
    write_tensors(folder / file, arrays, {"facts": json.dumps(facts)})
    return file


def _unpacked(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str], fold: str) -> Gram:
    try:
        facts = json.loads(metadata["facts"])[fold]
        side, tokens, nonfinite = str(facts["side"]), int(facts["tokens"]), int(facts["nonfinite"])
        energy, packed = float(facts["energy"]), arrays[fold]
        size = int((np.sqrt(8 * len(packed) + 1) - 1) / 2)
        moment = np.zeros((size, size))
        moment[np.tril_indices(size)] = packed
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtifactError(f"a file of Grams is damaged ({first_line(error)}); run `lowrank analyze` again") from None
    moment += np.tril(moment, -1).T
    return Gram("input" if side == "input" else "output", moment, tokens, energy, nonfinite)
