"""Description: what a file is, what it holds, and what can be done with it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

from lowrank.artifacts import parse_json
from lowrank.errors import ArtifactError, first_line

LARGEST_JSON = 256 << 20
ALL = 1_000_000
"""Entries: more than any file here has of one thing."""
TEXT = 400
"""Characters that are shown of a text from a file."""


@dataclass(frozen=True)
class Description:
    """What a file or folder is."""

    kind: str
    """A word for machines: `onnx`, `safetensors`, `report`, `run`, ..., `unknown`."""
    what: str
    """A sentence for people."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What it holds, as JSON can hold it; lists of mappings are tables."""
    next: tuple[str, ...] = ()
    """Commands, or what else can be done with it."""

    def to_json(self) -> dict[str, Any]:
        """A mapping that JSON can hold."""
        return asdict(self)


def read_any_json(path: Path) -> Any:
    """A JSON file of any kind.

    Raises:
        ArtifactError: if it is none, or too large to be one.
    """
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ArtifactError(f"{path} has {size:,} bytes, too many for JSON that is to be read; look at its beginning")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path} is no JSON ({first_line(error)}); copy it again") from None


def quoted(path: Path) -> str:
    """A path as it is typed in a shell."""
    return shlex.quote(str(path))


def tidy(value: Any, most: int = 20, depth: int = 8) -> Any:
    """A value from someone else's file, cut to a size that can be shown, and without what JSON cannot hold.

    Args:
        value: anything that JSON or YAML can be read as.
        most: entries of each list and mapping.
        depth: of lists and mappings in each other.
    """
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping | list | tuple) and depth == 0:
        return "..."
    if isinstance(value, Mapping):
        return {str(k)[:TEXT]: tidy(v, most, depth - 1) for k, v in islice(value.items(), most)}
    if isinstance(value, list | tuple):
        return [tidy(each, most, depth - 1) for each in value[:most]]
    text = str(value)
    return text if len(text) <= TEXT else text[: TEXT - 3] + "..."
