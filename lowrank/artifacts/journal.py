"""Journal: the pieces of long work, on disk as soon as they are done, so that a run that was killed can go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from lowrank.artifacts.files import hash_json, make_folder, read_json, read_tensors, write_json, write_tensors
from lowrank.errors import ArtifactError, PlanMismatch

T = TypeVar("T")
R = TypeVar("R")

PROGRESS_FOLDER = ".lowrank-progress"
"""The folder of unfinished work, inside that of a run."""
IDENTITY_FILE = "identity.json"

Arrays = Mapping[str, NDArray[Any]]
Piece = tuple[Arrays, Any]
"""Arrays, and what JSON can hold."""


@dataclass(frozen=True, slots=True)
class Codec(Generic[R]):
    """How results of one kind become pieces, and back bit for bit."""

    encode: Callable[[R], Piece]
    decode: Callable[[Piece], R]


def _facts_alone(result: Any) -> Piece:
    return {}, result


def _facts(piece: Piece) -> Any:
    return piece[1]


def _named(result: Arrays) -> Piece:
    return result, sorted(result)


def _by_name(piece: Piece) -> Arrays:
    return {name: piece[0][name] for name in piece[1]}


FACTS: Codec[Any] = Codec(_facts_alone, _facts)
"""For results that JSON can hold."""
ARRAYS: Codec[Arrays] = Codec(_named, _by_name)
"""For arrays by name."""


@dataclass(frozen=True, slots=True)
class Journal:
    """A folder of pieces; without one, nothing is kept. It can be sent to another process that sees the folder."""

    folder: Path | None = None

    def kept(self, key: str, codec: Codec[R], make: Callable[[], R]) -> R:
        """A result: that which is kept under a key, or else what `make` gives, which is then kept.

        Raises:
            ArtifactError: if it cannot be written.
        """
        if self.folder is None:
            return make()
        piece = self._read(key)
        if piece is not None:
            return codec.decode(piece)
        result = make()
        arrays, facts = codec.encode(result)
        # The format does not tell a file without arrays from a damaged one.
        write_tensors(self._path(key), arrays or {"none": np.zeros(1)}, {"key": key, "facts": json.dumps(facts)})
        return result

    def has(self, key: str) -> bool:
        """Whether a result is kept under a key."""
        return self.folder is not None and self._read(key) is not None

    def _read(self, key: str) -> Piece | None:
        """A piece; None if it was never done, or its file is damaged."""
        try:
            arrays, metadata = read_tensors(self._path(key))
            return (arrays, json.loads(metadata["facts"])) if metadata.get("key") == key else None
        except (ArtifactError, KeyError, ValueError):
            return None

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        # A weight's name may hold anything.
        return self.folder / f"{hash_json(key)}.safetensors"


NOWHERE = Journal()
"""A journal that keeps nothing."""


@dataclass(frozen=True, slots=True)
class Journaled(Generic[T, R]):
    """A job whose results are kept: what the journal has is not done again."""

    job: Callable[[T], R]
    journal: Journal
    key: Callable[[T], str]
    codec: Codec[R]

    def __call__(self, item: T) -> R:
        """The job's result."""
        return self.journal.kept(self.key(item), self.codec, lambda: self.job(item))


def open_journal(run: Path, stage: str, identity: Mapping[str, Any], resume: bool) -> Journal:
    """The journal of a stage of a run.

    Args:
        run: the run's folder.
        stage: which.
        identity: all that the pieces depend on.
        resume: go on with what is there; otherwise it is removed.

    Raises:
        PlanMismatch: if what is there was made from something else; both are named.
        ArtifactError: if the folder cannot be written.
    """
    folder = run / PROGRESS_FOLDER / stage
    if not resume:
        close_journal(run, stage)
    if (folder / IDENTITY_FILE).exists():
        before = read_json(folder / IDENTITY_FILE, "progress").get("identity")
        check_identity(run, before if isinstance(before, dict) else {}, identity)
    make_folder(folder)
    for leftover in folder.rglob(".*.*"):
        # Of a process that was killed while it wrote.
        leftover.unlink(missing_ok=True)
    write_json(folder / IDENTITY_FILE, "progress", {"identity": dict(identity)})
    return Journal(folder)


def check_identity(run: Path, before: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Check that unfinished work was made from the same model and options.

    Raises:
        PlanMismatch: if it was not; both are named.
    """
    changed = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
    if changed:
        changes = ", ".join(f"the {name} was {before.get(name)} and is {identity.get(name)}" for name in changed)
        raise PlanMismatch(
            f"{run} holds unfinished work, but {changes}; give the same model and options, or leave --resume out to "
            "begin anew"
        )


def unfinished_bytes(run: Path) -> int:
    """Bytes of the pieces of all stages that lie in a run."""
    return sum(path.stat().st_size for path in (run / PROGRESS_FOLDER).rglob("*") if path.is_file())


def close_journal(run: Path, stage: str) -> None:
    """Remove the pieces of a stage: what they were for is done."""
    shutil.rmtree(run / PROGRESS_FOLDER / stage, ignore_errors=True)
    # A folder with another stage's pieces stays.
    with suppress(OSError):
        (run / PROGRESS_FOLDER).rmdir()
