"""`--config run.yaml`: a file that stands for flags, checked against those of the command that it is given to."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lowrank.cli.verb import Flag, Verb
from lowrank.flat_yaml import RunFileError, Truth, read_flat

OPTION = "--config"
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
    found: str | None = None
    at = 0
    while at < len(rest) and rest[at] != "--":
        name, equals, value = rest[at].partition("=")
        if name == OPTION:
            value = value if equals else (rest[at + 1] if at + 1 < len(rest) else "")
            if Path(value).suffix.lower() in SUFFIXES:
                if found is not None:
                    raise RunFileError(f"{found} and {value}: there can be one run file; put both into one")
                found = value
                del rest[at : at + (1 if equals else 2)]
                continue
        at += 1
    return found, rest


def _given(tokens: Sequence[str], flags: Sequence[Flag]) -> set[str]:
    """Names of the parameters that are on the command line; an empty one stands for arguments."""
    known = {name: flag for flag in flags for name in (*flag.on, *flag.off)}
    found: set[str] = set()
    at = 0
    while at < len(tokens):
        name, equals, _ = tokens[at].partition("=")
        short = name[:2] if name.startswith("-") and not name.startswith("--") else name
        flag = known.get(name) or known.get(short)
        if flag is not None:
            found.add(flag.name)
            at += not (flag.is_switch or equals or (flag is known.get(short) and len(name) > 2 and short != name))
        elif not name.startswith("-") or name == "-":
            found.add("")
        at += 1
    return found


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
        key = written.replace("_", "-")
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(keys)}"
            raise RunFileError(f"{path}, line {line}: {command} has no option {written[:60]!r}; {hint}")
        if key in values:
            raise RunFileError(f"{path}, line {line}: {key} is given twice, first in line {lines[key]}; keep one")
        # YAML reads yes and no as true and false, which are words to all but switches.
        plain = value.value if keys[key].is_switch and isinstance(value, Truth) else _worded(value)
        values[key], lines[key] = plain, line
    given = {key: value for key, value in values.items() if value is not None}
    if Path(str(given.get("config", ""))).suffix.lower() in SUFFIXES:
        raise RunFileError(f"{path}, line {lines['config']}: a run file cannot name another one; put both into one")
    return _validated(path, given, lines, keys)


def _validated(
    path: Path, given: Mapping[str, Any], lines: Mapping[str, int], keys: Mapping[str, Flag]
) -> dict[str, Any]:
    """Values of the types that the flags have, and within their limits."""
    from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, ValidationError, create_model

    fields: dict[str, Any] = {}
    for key, flag in keys.items():
        kind: Any = StrictBool if flag.is_switch else flag.kind
        if flag.is_list:
            kind = Annotated[kind, BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
        elif flag.is_text:
            kind = Annotated[kind, BeforeValidator(_joined)]
        if flag.option.least is not None:
            kind = Annotated[kind, Field(ge=flag.option.least, le=flag.option.most)]
        fields[flag.name] = (kind, Field(default=None, alias=key))
    model = create_model(
        "RunFile", __config__=ConfigDict(coerce_numbers_to_str=True, protected_namespaces=()), **fields
    )
    try:
        made = model.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise RunFileError(
            f"{path}, line {lines[key]}: {key} cannot be {str(given[key])[:60]!r}: {_said(first['msg'])}"
        ) from None
    found = {keys[key].name: getattr(made, keys[key].name) for key in given}
    return {name: value.value if hasattr(value, "value") else value for name, value in found.items()}


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
