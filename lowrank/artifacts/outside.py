"""Checks on files that somebody else made: where the paths in them lead, and how large they claim to be."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

FREE_BYTES = 64 << 20
EXPANSION = 100
"""Text and masks of ones compress well; numbers and weights hardly do."""


def named_in(folder: Path, name: str) -> Path | None:
    """The path of a name that stays in a folder; None for one that leads out of it, on any system.

    Only names are judged: a link that somebody made in their own folder is theirs (see docs/decisions).

    Example:
        >>> named_in(Path("model"), "../secret") is None
        True
    """
    kinds = PurePosixPath(name), PureWindowsPath(name)
    leads_out = any(kind.is_absolute() or kind.drive or ".." in kind.parts for kind in kinds)
    # ONNX Runtime takes some names with stars for addresses in memory.
    return None if leads_out or not kinds[0].parts or set(name) & {"\x00", "*"} else folder / name


def is_file(path: Path) -> bool:
    """Whether there is a file, also for names that no file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def most_bytes(path: Path) -> int:
    """How much may come out of a file that is compressed, or whose tensors share numbers."""
    return max(FREE_BYTES, EXPANSION * path.stat().st_size)


def check_zip(path: Path) -> None:
    """Check that the members of an archive are not too large together for its size.

    Raises:
        ValueError: if they are.
        zipfile.BadZipFile: if it is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
    if claimed > most_bytes(path):
        raise ValueError(f"its parts would take {claimed:,} bytes, too many for a file of {path.stat().st_size:,}")


def is_plain(name: str) -> bool:
    """Whether a name can be printed as it is: without line breaks, codes for terminals, or halves of characters."""
    return name.isprintable()
