"""`--config run.yaml`: a file that stands for flags, checked against those of the command that it is given to."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lowrank.cli.verb import CONFIG, Flag, Verb
from lowrank.flat_yaml import RunFileError, Truth, read_flat

SUFFIXES = (".yaml", ".yml")
"""Of run files; anything else that `--config` is given is a model's config.json."""


def expanded(arguments: Sequence[str], app: typer.Typer) -> list[str]:
    """Arguments of the command line with those of the run file among them in its place.

    What the command line names itself wins, lists as a whole.

    Args:
        arguments: those after the program's name.
        app: whose commands they may be for.

    Raises:
        RunFileError: if the file cannot be read, or holds what the command does not take.
    """
    path, rest = _without_file(arguments)
    verb = next((each.callback for each in app.registered_commands if rest[:1] == [each.name]), None)
    if path is None or not isinstance(verb, Verb):
        return list(arguments)
    flags = verb.flags
    values = read_run_file(Path(path).expanduser(), flags, rest[0])
    given = _given(rest[1:], flags)
    places = [values[flag.name] for flag in flags if not flag.on and flag.name in values]
    named = [flag for flag in flags if flag.on and flag.name in values and flag.name not in given]
    return [
        rest[0],
        *([] if "" in given else map(str, places)),
        *(token for flag in named for token in _tokens(flag, values[flag.name])),
        *rest[1:],
    ]


def _without_file(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The run file among the arguments, and the others."""
    rest = list(arguments)
    file: str | None = None
    at = 0
    while at < len(rest) and rest[at] != "--":
        name, equals, value = rest[at].partition("=")
        if name == "--config":
            value = value if equals else (rest[at + 1] if at + 1 < len(rest) else "")
            if Path(value).suffix.lower() in SUFFIXES:
                if file is not None:
                    raise RunFileError(f"{file} and {value}: there can be one run file; put both into one")
                file = value
                del rest[at : at + (1 if equals else 2)]
                continue
        at += 1
    return file, rest


def _given(tokens: Sequence[str], flags: Sequence[Flag]) -> set[str]:
    """Names of the parameters that are on the command line; an empty one stands for arguments."""
    known = {name: flag for flag in flags for name in (*flag.on, *flag.off)}
    names: set[str] = set()
    at = 0
    while at < len(tokens):
        name, equals, _ = tokens[at].partition("=")
        short = name[:2] if name.startswith("-") and not name.startswith("--") else name
        flag = known.get(name) or known.get(short)
        if flag is not None:
            names.add(flag.name)
            at += not (flag.is_switch or equals or (flag is known.get(short) and len(name) > 2 and short != name))
        elif not name.startswith("-") or name == "-":
            names.add("")
        at += 1
    return names


def _tokens(flag: Flag, value: Any) -> list[str]:
    """What to type for a value."""
    if flag.is_switch:
        return [*(flag.on if value else flag.off)][:1]
    values = value if isinstance(value, list) else [value]
    return [f"--{flag.key}={each}" for each in values]


def read_run_file(path: Path, flags: Sequence[Flag], command: str) -> dict[str, Any]:
    """The values in a run file by the names of the parameters.

    Raises:
        RunFileError: with the line that is wrong, and what to write instead.
    """
    keys = {flag.key: flag for flag in flags}
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for written, (line, value) in read_flat(path).items():
        key, place = written.replace("_", "-"), f"{path}, line {line}"
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(keys)}"
            raise RunFileError(f"{place}: {command} has no option {written[:60]!r}; {hint}")
        if key in lines:
            raise RunFileError(f"{place}: {key} is given twice, first in line {lines[key]}; keep one")
        lines[key], flag = line, keys[key]
        # YAML reads yes and no as true and false, which are words to all but switches.
        plain = value.value if flag.is_switch and isinstance(value, Truth) else _worded(value)
        if key == CONFIG.name and Path(str(plain)).suffix.lower() in SUFFIXES:
            raise RunFileError(f"{place}: a run file cannot name another one; put both into one")
        if plain is not None:
            values[flag.name] = _validated(flag, plain, place)
    return values


def _validated(flag: Flag, value: Any, place: str) -> Any:
    """A value of the type that the flag has, and within its limits."""
    from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, TypeAdapter, ValidationError

    kind: Any = StrictBool if flag.is_switch else flag.kind
    if flag.is_list:
        kind = Annotated[kind, BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
    elif kind is str:
        kind = Annotated[kind, BeforeValidator(_joined)]
    if flag.option.least is not None:
        kind = Annotated[kind, Field(ge=flag.option.least, le=flag.option.most)]
    try:
        valid: Any = TypeAdapter(kind, config=ConfigDict(coerce_numbers_to_str=True)).validate_python(value)
    except ValidationError as error:
        raise RunFileError(
            f"{place}: {flag.key} cannot be {str(value)[:60]!r}: {_said(error.errors()[0]['msg'])}"
        ) from None
    return valid.value if flag.choices else valid


def _worded(value: Any) -> Any:
    if isinstance(value, list):
        return [_worded(each) for each in value]
    return value.word if isinstance(value, Truth) else value


def _joined(value: Any) -> Any:
    """A list as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _said(text: str) -> str:
    """A message of pydantic's, to go on with in a sentence."""
    text = text.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
