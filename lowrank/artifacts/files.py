"""Files of a run: JSON for people, safetensors for numbers; written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lowrank.errors import ArtifactError, LowRankError
from lowrank.interrupts import heed_swallowed

SCHEMA_MAJOR = 1
SCHEMA_MINOR = 0
MAKERS = {
    "analysis": "run `lowrank analyze MODEL` first, or name its folder with -o",
    "plan": "`lowrank select` writes one",
    "model": "run `lowrank compress` first, or give the folder of a finished run",
}
"""What makes a file of each kind, for the error when it is missing."""
RECORD_FILE = "lowrank.json"
"""What was replaced in a saved model, beside its tensors."""
STAGE_PREFIX = ".lowrank-staging-"
ATTIC = ".replaced"


def _cannot_write(path: Path, error: Exception) -> ArtifactError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:120]
    return ArtifactError(
        f"cannot write {path}: {reason}; nothing that was there has changed: make room or choose another folder with -o"
    )


def _is_io(error: Exception) -> bool:
    """Whether an error is the operating system's; safetensors and torch wrap those in their own."""
    if isinstance(error, LowRankError):
        return False
    wrapped = any(sign in str(error) for sign in ("os error", "I/O error", "failed writing", "file write failed"))
    return isinstance(error, OSError) or wrapped


def make_folder(path: Path) -> Path:
    """The folder, made if it was missing.

    Raises:
        ArtifactError: if it cannot be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise _no_folder(path) from None
    except OSError as error:
        raise _cannot_write(path, error) from None
    return path


def _no_folder(path: Path) -> ArtifactError:
    """The error of a file where a folder should be."""
    file = next((place for place in (path, *path.parents) if place.is_file()), path)
    return ArtifactError(
        f"{file} is a file, and a run is a folder; give the folder that `lowrank compress` wrote, or with -o a new one"
    )


@contextmanager
def staged(folder: Path, owned: Iterable[str] = ()) -> Iterator[Path]:
    """A hidden folder inside `folder` whose entries replace those of `folder` when the block ends well.

    If the block fails, is interrupted or runs out of disk, everything that was in `folder` is as it was.

    Args:
        folder: made if it is missing.
        owned: entries of an earlier result that would no longer belong to it: those that the block does not
            write anew are removed with the same care.

    Raises:
        ArtifactError: if something cannot be written.
    """
    make_folder(folder)
    _sweep(folder)
    stage = folder / f"{STAGE_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        stage.mkdir()
        yield stage
        heed_swallowed()
        _replace_entries(stage, folder, owned)
    except Exception as error:
        if _is_io(error):
            raise _cannot_write(folder, error) from error
        raise
    finally:
        # Never with anything of the user's still in it.
        if not (stage / ATTIC).is_dir() or not any((stage / ATTIC).iterdir()):
            shutil.rmtree(stage, ignore_errors=True)


def _replace_entries(stage: Path, folder: Path, owned: Iterable[str]) -> None:
    """Move each entry of `stage` over its namesake; on failure put everything back."""
    attic = stage / ATTIC
    attic.mkdir()
    new = sorted(entry.name for entry in stage.iterdir() if entry != attic)
    try:
        for name in sorted({*new, *owned}):
            if (folder / name).exists() or (folder / name).is_symlink():
                os.replace(folder / name, attic / name)
        for name in new:
            os.replace(stage / name, folder / name)
    except BaseException:
        _put_back(stage, folder)
        raise
    shutil.rmtree(attic)


def _put_back(stage: Path, folder: Path) -> None:
    """What was moved out of `folder` returns to it; what had taken its place goes back to the stage."""
    attic = stage / ATTIC
    for old in list(attic.iterdir()) if attic.is_dir() else []:
        if (folder / old.name).exists():
            os.replace(folder / old.name, stage / f"{old.name}.unfinished")
        os.replace(old, folder / old.name)


def _sweep(folder: Path) -> None:
    """Undo what a killed process left unfinished; nothing else starts with these names."""
    for leftover in folder.glob(f"{STAGE_PREFIX}*"):
        if not _is_alive(leftover.name.removeprefix(STAGE_PREFIX).split("-")[0]):
            _put_back(leftover, folder)
            shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def linked(source: str, target: str) -> None:
    """Give a file another name, which no file has yet; a copy where the file system has no links.

    Raises:
        FileExistsError: if there is one of that name: copying would write into what it is linked to.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write `content` with its schema tag, whole or not at all."""
    tagged = {"schema": f"lowrank.{kind}/{SCHEMA_MAJOR}.{SCHEMA_MINOR}", **content}
    text = json.dumps(tagged, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def parse_json(content: str | bytes, finite: bool = False) -> Any:
    """A JSON value that someone else may have written.

    Args:
        content: the text.
        finite: refuse NaN and infinity, which Python writes and other languages do not read.

    Raises:
        ValueError: if it is none, whatever is wrong with it: the parser has an error of another kind for deep nesting.
    """
    try:
        return json.loads(content, parse_constant=_no_number if finite else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no number")


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        ArtifactError: if it is missing, not JSON, of another kind, or of a newer major schema.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"), finite=True)
    except FileNotFoundError:
        raise ArtifactError(f"there is no {path}; {MAKERS.get(kind, 'give the folder of a finished run')}") from None
    except NotADirectoryError:
        raise _no_folder(path) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path}: {error}; give the right file, or make it again") from None
    name, _, version = str(content.get("schema") if isinstance(content, dict) else None).partition("/")
    if name != f"lowrank.{kind}":
        raise ArtifactError(f"{path} is not a lowrank {kind} (its schema is {name!r}); give the right file")
    if version.split(".")[0] != str(SCHEMA_MAJOR):
        raise ArtifactError(
            f"{path} has schema version {version}, this lowrank reads {SCHEMA_MAJOR}.x; make it again with this version"
        )
    return content


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays as safetensors, whole or not at all."""
    from safetensors.numpy import save_file

    with atomic(path) as temporary:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, dict(metadata))


def read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays that `write_tensors` wrote, and the metadata.

    Raises:
        ArtifactError: if it is missing or damaged.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone.

    Raises:
        ArtifactError: if it is missing or damaged.
    """
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except FileNotFoundError:
        raise ArtifactError(f"there is no {path}; run `lowrank analyze MODEL` again") from None
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot read {path}: {error}; run `lowrank analyze MODEL` again") from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        if _is_io(error):
            raise _cannot_write(path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def hash_files(paths: Iterable[Path]) -> str:
    """One SHA-256 over the names and contents of some files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def hash_array(array: NDArray[Any]) -> str:
    """SHA-256 of an array's type, shape and numbers."""
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def hash_json(content: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]
