"""Verb: a subcommand whose options are the fields of the dataclasses that its function takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, fields, is_dataclass
from enum import Enum, StrEnum
from functools import update_wrapper
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

DATA, WEIGHTS, BUDGET, OUTPUT = "Data", "Which weights", "Budget", "Output and engine"
HEALING, LARGE, EXPERTS = "Healing", "Large models", "For experts"
PANELS = (None, BUDGET, DATA, WEIGHTS, OUTPUT, HEALING, LARGE, EXPERTS)
"""Groups of options in a help text, in their order. What most people need is in none and stands first."""


@dataclass(frozen=True, slots=True)
class Option:
    """How the command line takes a value: the metadata of a field or a parameter."""

    metavar: str
    """What stands for the value in a help text; empty for a switch."""
    help: str
    panel: str | None = None
    _: KW_ONLY
    names: tuple[str, ...] = ()
    """As typer takes them; by default the field's name, and `--no-` with it for a switch that is not off by default."""
    is_argument: bool = False
    """Whether it has no name on the command line, only a place."""
    choices: Iterable[str] = ()
    """The words that are allowed; by default those of the field's `Literal`."""
    parse: Callable[[str], Any] | None = None
    """Makes the value from text."""
    least: float | None = None
    """The smallest number that is allowed."""
    most: float | None = None
    """The largest number that is allowed."""
    complete: Callable[[str], list[str]] | None = None
    """Gives the shell the words that begin like this one."""
    show_default: bool = True


@dataclass(frozen=True, slots=True)
class Flag:
    """An option or argument of one verb."""

    name: str
    """The name of the field or parameter."""
    owner: str
    """The parameter whose dataclass has the field; empty if it is a parameter itself."""
    kind: Any
    """The type that is read from the command line, without None."""
    is_optional: bool
    """Whether the value may be None."""
    option: Option
    default: Any = inspect.Parameter.empty

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.kind is bool

    @property
    def is_list(self) -> bool:
        """Whether it can be given more than once."""
        return get_origin(self.kind) is list

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes; none if it takes others, too."""
        return tuple(getattr(self.kind, "__members__", ()))

    @property
    def names(self) -> tuple[str, ...]:
        """As typer takes them: `--on/--off`, and nothing for an argument."""
        if self.option.is_argument or self.option.names:
            return self.option.names
        word = self.name.replace("_", "-")
        return (f"--{word}/--no-{word}" if self.is_switch and self.default is not False else f"--{word}",)

    @property
    def on(self) -> tuple[str, ...]:
        """The names on the command line, of a switch those that turn it on."""
        return tuple(name for each in self.names if (name := each.partition("/")[0].strip()))

    @property
    def off(self) -> tuple[str, ...]:
        """The names that turn a switch off."""
        return tuple(name for each in self.names if (name := each.partition("/")[2].strip()))

    @property
    def key(self) -> str:
        """The name in a run file."""
        return next((name for name in self.on if name.startswith("--")), self.name).lstrip("-")

    @property
    def parameter(self) -> inspect.Parameter:
        """What typer reads."""
        option = self.option
        shown: dict[str, Any] = {
            "help": option.help,
            "rich_help_panel": option.panel,
            "autocompletion": option.complete,
            "show_default": option.show_default and self.default is not None and not self.is_switch,
            "metavar": option.metavar if option.metavar or self.is_switch else None,
        }
        info = typer.Argument(**shown) if option.is_argument else typer.Option(*self.names, **shown)
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=self.kind(self.default) if self.choices and self.default is not None else self.default,
            annotation=Annotated[self.kind | None if self.is_optional else self.kind, info],
        )

    def read(self, value: Any) -> Any:
        """The value of the field from what typer gives.

        Raises:
            BadParameter: if it is out of its range, or no text of this kind.
        """
        option = self.option
        if isinstance(value, Enum):
            return value.value
        limit = None
        if option.least is not None and isinstance(value, int | float) and not value >= option.least:
            limit = f"greater than or equal to {option.least}"
        if option.most is not None and isinstance(value, int | float) and not value <= option.most:
            limit = f"less than or equal to {option.most}"
        if limit is not None:
            raise typer.BadParameter(f"Input should be {limit}", param_hint=f"'{self.on[0]}'")
        if isinstance(value, str) and option.parse is not None:
            return option.parse(value)
        if isinstance(value, Path):
            return self._expanded(value)
        # Some versions of typer give an empty list for what is not on the command line.
        return self.default if value == [] else value

    def _expanded(self, path: Path) -> Path:
        """The path with the home folder in place of `~`."""
        try:
            return path.expanduser()
        except RuntimeError:
            raise typer.BadParameter(f"{path}: there is no such user", param_hint=f"'{self.on[0]}'") from None


CONFIG = Flag(
    "config", "run file", str, True, Option("FILE", "run.yaml: a file with these options.", EXPERTS), default=None
)
"""The run file of verbs that take no config.json; its options are put in its place before typer reads them."""


class Verb:
    """A function as typer calls it: with one value for each field of the dataclasses that the function takes.

    A parameter is a dataclass, or `Annotated[Dataclass, "field", "field"]` if only these fields are options of the
    verb, or a value with an `Option`. Values that are not given are the defaults.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        update_wrapper(self, function)
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        self.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        self.function = function
        hints = get_type_hints(function, include_extras=True)
        del hints["return"]
        kinds: dict[str, Any] = {name: _unpacked(hint)[0] for name, hint in hints.items()}
        self.groups = {name: kinds[name] for name in kinds if is_dataclass(kinds[name])}
        flags = [flag for name, hint in hints.items() for flag in _flags(function, name, hint)]
        if not any(flag.name == CONFIG.name for flag in flags):
            flags.append(CONFIG)
        self.flags = tuple(sorted(flags, key=lambda flag: PANELS.index(flag.option.panel)))
        self.__signature__ = inspect.Signature([flag.parameter for flag in self.flags])
        self.__annotations__ = {}

    @property
    def name(self) -> str:
        """As it is typed."""
        return self.function.__name__

    def __call__(self, **values: Any) -> None:
        """Call the function.

        Raises:
            BadParameter: if a value cannot be used.
        """
        contents: dict[str, dict[str, Any]] = {owner: {} for owner in ("", CONFIG.owner, *self.groups)}
        for flag in self.flags:
            contents[flag.owner][flag.name] = flag.read(values.get(flag.name, flag.default))
        for file in filter(None, contents[CONFIG.owner].values()):
            raise typer.BadParameter(f"{file}: here it takes a run file, whose name ends in .yaml")
        groups = {owner: kind(**contents[owner]) for owner, kind in self.groups.items()}
        self.function(**contents[""], **groups)


def _flags(function: Callable[..., None], name: str, hint: Any) -> Iterator[Flag]:
    """The options of one parameter."""
    kind, wanted = _unpacked(hint)
    if not is_dataclass(kind):
        default = inspect.signature(function).parameters[name].default
        yield Flag(name, "", *_typed(kind, wanted[0]), wanted[0], default)
        return
    defaults = {field.name: field.default for field in fields(kind)}
    hints = get_type_hints(kind, include_extras=True)
    for field in wanted or defaults:
        plain, (option,) = _unpacked(hints[field])
        yield Flag(field, name, *_typed(plain, option), option, defaults[field])


def _unpacked(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type and its metadata."""
    return (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _typed(hint: Any, option: Option) -> tuple[Any, bool]:
    """The type that typer is to read for a field of this type, and whether it may be None."""
    is_optional = type(None) in get_args(hint)
    kind = get_args(hint)[0] if is_optional else hint
    choices = tuple(option.choices) or (get_args(kind) if get_origin(kind) is Literal else ())
    if choices:
        return StrEnum("Choice", {name: name for name in choices}), is_optional
    return (kind if option.parse is None else str), is_optional
