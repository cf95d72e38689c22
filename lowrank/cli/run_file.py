"""`--config run.yaml`: a file that stands for flags, checked against those of the command that it is given to."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from lowrank.flat_yaml import RunFileError, Truth, read_flat

OPTION = "--config"
SUFFIXES = (".yaml", ".yml")
"""Of run files; anything else that `--config` is given is a model's config.json."""
MARKED = Annotated[str | None, typer.Option(OPTION, help="run.yaml: a file with any of these options.")]


@dataclass(frozen=True, slots=True)
class Flag:
    """What a command takes: an argument, or an option with its names."""

    name: str
    """Of the Python parameter."""
    kind: Any
    """Its type."""
    info: Any
    """What typer knows of it."""
    options: tuple[str, ...]
    """As on the command line; nothing for an argument."""
    off: str = ""
    """What turns a switch off."""

    @property
    def key(self) -> str:
        """As it is called in a file."""
        long = [name for name in self.options if name.startswith("--")]
        return (long or list(self.options) or [self.name])[0].lstrip("-")

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.kind is bool or bool in get_args(self.kind)

    @property
    def is_list(self) -> bool:
        """Whether it can be given more than once."""
        return any(get_origin(each) is list for each in (self.kind, *get_args(self.kind)))

    @property
    def is_text(self) -> bool:
        """Whether it takes text, or a list with commas."""
        return str in (self.kind, *get_args(self.kind))


class App(typer.Typer):
    """A command line of which every command takes a run file."""

    def command(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Register a command, which is returned as it was."""
        register = super().command(*args, **kwargs)

        def decorate(function: Any) -> Any:
            register(_listing(function))
            return function

        return decorate


def _listing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with `--config` in its help, if it has none of its own."""
    signature = inspect.signature(function, eval_str=True)
    if "config" in signature.parameters:
        return function

    @wraps(function)
    def run(*args: Any, config: str | None = None, **kwargs: Any) -> Any:
        if config is not None:
            raise typer.BadParameter(f"{config}: here it takes a run file, whose name ends in .yaml")
        return function(*args, **kwargs)

    extra = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=MARKED)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), extra])  # type: ignore[attr-defined]
    run.__annotations__ = {**function.__annotations__, "config": MARKED}
    return run


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
    command = next((each for each in app.registered_commands if each.callback and rest[:1] == [_called(each)]), None)
    if path is None or command is None or command.callback is None:
        return list(arguments)
    flags = flags_of(command.callback)
    values = read_run_file(Path(path).expanduser(), flags, rest[0])
    given = _given(rest[1:], flags)
    places = [values[flag.name] for flag in flags if not flag.options and flag.name in values]
    named = [flag for flag in flags if flag.options and flag.name in values and flag.name not in given]
    return [
        rest[0],
        *([] if "" in given else map(str, places)),
        *(token for flag in named for token in _tokens(flag, values[flag.name])),
        *rest[1:],
    ]


def _called(command: Any) -> str:
    return command.name or command.callback.__name__.replace("_", "-")


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


def flags_of(function: Callable[..., Any]) -> list[Flag]:
    """All that a command takes, from the annotations that typer reads, too."""
    hints = get_type_hints(function, include_extras=True)
    found: list[Flag] = []
    for name in inspect.signature(function).parameters:
        kind, info = (*get_args(hints[name]), None)[:2] if get_origin(hints[name]) is Annotated else (hints[name], None)
        if isinstance(info, typer.models.ArgumentInfo):
            found.append(Flag(name, kind, info, ()))
            continue
        written = _declared(info)
        switch = kind is bool or bool in get_args(kind)
        dashed = f"--{name.replace('_', '-')}"
        if not written:
            written = [f"{dashed}/--no-{dashed[2:]}" if switch else dashed]
        pairs = [part.partition("/") for part in written]
        on = tuple(first for first, _, _ in pairs if first)
        off = next((last for _, _, last in pairs if last), "")
        found.append(Flag(name, kind, info, on, off))
    return found


def _declared(info: Any) -> list[str]:
    """The names that an annotation gives an option; typer takes the first of them for a default until it looks."""
    first = getattr(info, "default", None)
    names = [*([first] if isinstance(first, str) else []), *(getattr(info, "param_decls", None) or ())]
    return ["/".join(part.strip() for part in name.split("/")) for name in names]


def _given(tokens: Sequence[str], flags: Sequence[Flag]) -> set[str]:
    """Names of the parameters that are on the command line; an empty one stands for arguments."""
    known = {option: flag for flag in flags for option in flag.options}
    for flag in flags:
        known |= {each: flag for name in _declared(flag.info) if (each := name.partition("/")[2])}
        known |= {flag.off: flag} if flag.off else {}
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
        word = flag.options[0] if value else flag.off
        return [word] if word else []
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
        limits = {"ge": getattr(flag.info, "min", None), "le": getattr(flag.info, "max", None)}
        limits = {name: limit for name, limit in limits.items() if limit is not None}
        if limits:
            kind = Annotated[kind, Field(**limits)]
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
