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
from lowrank.core.truncation.gram import Gram, Side
from lowrank.errors import ArtifactError, first_line

GRAMS_FOLDER = "grams"
"""The folder of files with Grams, beside a run's analysis."""


@dataclass(frozen=True, eq=False)
class StoredGrams(Mapping[str, Folds]):
    """Grams by weight name, as lower triangles in float32. It can be sent to a process that sees the folder."""

    folder: Path
    files: Mapping[str, str]
    """The file of each weight; weights that read the same input have the same one."""

    def __getitem__(self, name: str) -> Folds:
        return _folds(*read_tensors(self.folder / self.files[name]))

    def facts(self) -> dict[str, Folds]:
        """All of them without their moments, which are not read."""
        none = {fold: np.zeros(0, np.float32) for fold in ("fit", "held")}
        known = {file: _folds(none, read_metadata(self.folder / file)) for file in set(self.files.values())}
        return {name: known[file] for name, file in self.files.items()}

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def facts_of(gram: Gram) -> dict[str, Any]:
    """All of a Gram that JSON can hold."""
    return {key: getattr(gram, key) for key in ("side", "tokens", "energy", "nonfinite")}


def triangle_of(gram: Gram) -> NDArray[np.float64]:
    """The lower triangle of its moment, row after row."""
    return gram.moment[..., *np.tril_indices(gram.moment.shape[-1])]


def gram_of(facts: Mapping[str, Any], triangle: NDArray[Any], total: NDArray[Any] | None = None) -> Gram:
    """The Gram that `facts_of` and `triangle_of` were given; `total` is the sum of its tokens, if that was kept."""
    size = int((np.sqrt(8 * triangle.shape[-1] + 1) - 1) / 2)
    moment = np.zeros((*triangle.shape[:-1], size, size))
    moment[..., *np.tril_indices(size)] = triangle
    moment += np.tril(moment, -1).swapaxes(-1, -2)
    side: Side = "input" if facts["side"] == "input" else "output"
    return Gram(side, moment, int(facts["tokens"]), float(facts["energy"]), int(facts["nonfinite"]), total)


def store_grams(folder: Path, name: str, folds: Folds) -> str:
    """Write the Grams of a weight; the file's name."""
    file = f"{hash_json(name)}.safetensors"
    grams = {"fit": folds.fit, "held": folds.heldout}
    arrays = {fold: triangle_of(gram).astype(np.float32) for fold, gram in grams.items()}
    facts = {fold: facts_of(gram) for fold, gram in grams.items()}
    write_tensors(folder / file, arrays, {"facts": json.dumps(facts)})
    return file


def _folds(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> Folds:
    try:
        facts = json.loads(metadata["facts"])
        return Folds(*(gram_of(facts[fold], arrays[fold]) for fold in ("fit", "held")))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtifactError(f"a file of Grams is damaged ({first_line(error)}); run `lowrank analyze` again") from None
