"""One damaged file and what came of it."""

from __future__ import annotations

import traceback
from pathlib import Path
from random import Random

from lowrank.errors import LowRankError

from .readers import Reader

STARVED = ("not enough memory", "can't allocate", "cannot allocate", "bad_alloc", "Unable to allocate")


def prepare(reader: Reader, folder: Path) -> None:
    """The reader's valid files in a folder; each must be readable."""
    for name, content in reader.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    reader.read(folder)


def damaged(reader: Reader, seed: int, number: int) -> bytes:
    """The input of a number: always the same."""
    return reader.mutate(Random(f"{seed} {reader.name} {number}"), reader.files()[reader.file])


def attempt(reader: Reader, folder: Path, content: bytes) -> str:
    """`result`, `refusal`, or what is wrong and where."""
    (folder / reader.file).write_bytes(content)
    try:
        reader.read(folder)
    except LowRankError as error:
        # A refusal that was made of running out of memory was found too late.
        return f"memory: {_where(error)}" if _starved(error) else "refusal"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:60]!r} at {_where(error)}"
    return "result"


def _starved(error: BaseException) -> bool:
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, MemoryError) or any(sign in str(at) for sign in STARVED):
            return True
        at = at.__context__
    return False


def _where(error: BaseException) -> str:
    """The innermost line of the project that an error went through."""
    root = error
    while root.__context__ is not None:
        root = root.__context__
    frames = [f for at in (root, error) for f in traceback.extract_tb(at.__traceback__) if "/lowrank/" in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
