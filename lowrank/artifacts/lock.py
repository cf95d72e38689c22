"""One run at a time in a folder."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from lowrank.artifacts.files import make_folder
from lowrank.errors import ArtifactError
from lowrank.parallel import processes

if TYPE_CHECKING:
    from filelock import FileLock

P = ParamSpec("P")
R = TypeVar("R")

LOCK_FILE = ".lowrank-lock"
OWNER_FILE = ".lowrank-owner.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for the length of the block; a lock of a process that is gone holds nothing.

    Raises:
        ArtifactError: if another process holds it, or it cannot be written.
    """
    was_there = folder.exists()
    make_folder(folder)
    lock = _acquired(folder)
    try:
        if lock.lock_counter == 1:
            facts = {"process": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
            with suppress(OSError):
                # Only for the message that another process would give.
                (folder / OWNER_FILE).write_text(json.dumps(facts), encoding="utf-8")
        yield
    finally:
        if lock.lock_counter == 1:
            (folder / OWNER_FILE).unlink(missing_ok=True)
            (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()
        if not was_there:
            # Only if nothing was written to it.
            with suppress(OSError):
                folder.rmdir()


def _acquired(folder: Path) -> FileLock:
    from filelock import FileLock, Timeout

    # One lock a path, so that a stage may run inside another of the same process.
    lock = FileLock(folder / LOCK_FILE, is_singleton=True)
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ArtifactError(
                f"{folder} is in use by another lowrank{_owner(folder)}; wait for it, or choose another folder with -o"
            ) from None
        except OSError as error:
            raise ArtifactError(f"cannot write {folder}: {error.strerror}; choose another folder with -o") from None
        if (folder / LOCK_FILE).exists():
            return lock
        # Its last holder removed the file between opening and locking it: what was locked is nobody's.
        lock.release()


def holding(parameter: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that holds the folder in one of its parameters while it runs; none, if that is None."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            folder = bound.arguments[parameter]
            # Of several processes that work together the first one writes.
            if folder is None or processes()[0] > 0:
                return function(*args, **kwargs)
            with locked(Path(folder).expanduser()):
                return function(*args, **kwargs)

        return wrapped

    return decorate


def _owner(folder: Path) -> str:
    try:
        facts = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
        return f" (process {facts['process']} on {facts['host']}, since {facts['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
