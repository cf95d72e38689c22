"""Reading a run file as plain data: the keys of a YAML file with their lines and values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.errors import LowRankError, first_line

LARGEST = 1 << 16
"""Bytes: flags take less."""


class RunFileError(LowRankError):
    """A file of options does not say what it should."""


@dataclass(frozen=True, slots=True)
class Truth:
    """True or false, and the word for it in the file."""

    value: bool
    word: str


def read_flat(path: Path) -> dict[str, tuple[int, Any]]:
    """Keys of a YAML file with their lines and values, which are numbers, words, or lists of them.

    Raises:
        RunFileError: if it is no such file.
    """
    import yaml

    try:
        if path.stat().st_size > LARGEST:
            raise RunFileError(f"{path} has {path.stat().st_size:,} bytes, too many for a run file; give the right one")
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror or error}; give another run file") from None
    except (ValueError, yaml.YAMLError) as error:
        raise RunFileError(f"{path} is no text ({first_line(error)}); write YAML in UTF-8") from None
    try:
        _check_flat(path, text)
        root = loader.get_single_node()
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise RunFileError(f"{path}, line {root.start_mark.line + 1}: give options, one a line: budget: 0.5")
        options: dict[str, tuple[int, Any]] = {}
        for key, value in root.value:
            line, name = key.start_mark.line + 1, str(key.value)
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not isinstance(key, yaml.ScalarNode):
                raise RunFileError(f"{path}, line {line}: a list is no name of an option")
            if name in options:
                raise RunFileError(f"{path}, line {line}: {name} is given twice, first in line {options[name][0]}")
            values = [_scalar(loader, each) for each in parts]
            options[name] = (line, values if isinstance(value, yaml.SequenceNode) else values[0])
        return options
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise RunFileError(f"{path}{where}: this is no YAML ({reason}); write one option a line: budget: 0.5") from None
    finally:
        loader.dispose()


def _scalar(loader: Any, node: Any) -> Any:
    scalar = loader.construct_object(node)
    return Truth(scalar, str(node.value)) if isinstance(scalar, bool) else scalar


def _check_flat(path: Path, text: str) -> None:
    """Check, before anything is built, that there are only keys with words and lists of them."""
    import yaml

    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > 2 or (depth == 2 and isinstance(event, yaml.MappingStartEvent)):
                line = event.start_mark.line + 1
                raise RunFileError(f"{path}, line {line}: an option is a word or a number, or a list of them")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
