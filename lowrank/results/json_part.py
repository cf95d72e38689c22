"""Part: a piece of a result that has names in Python and keys in JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from lowrank.errors import ArtifactError

LEFT_OUT = {"left out": True}
"""Marks a field whose key is absent from the JSON where its value is None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The keys of a JSON object as fields, in order.

    A field with `"read"` in its metadata is read by that function; a key that is a keyword has a `_` behind its name.
    """

    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Keys that this version does not know; they are written again as they were."""

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read what `to_json` gave; keys that are missing get the defaults of their fields.

        Raises:
            TypeError: if a key without a default is missing, a value is of another type, or the content is no object.
        """
        if not isinstance(content, Mapping):
            raise TypeError(f"{cls.__name__} is not an object")
        rest, known, hints = dict[str, Any](content), dict[str, Any](), _hints(cls)
        for each in fields(cls)[1:]:
            key = each.name.rstrip("_")
            if key in rest:
                value, read = rest.pop(key), each.metadata.get("read")
                known[each.name] = read(value) if read is not None and value is not None else value
                if not fits(known[each.name], hints[each.name]):
                    raise TypeError(f"{key} is {str(value)[:40]!r}")
            elif each.default is MISSING and each.default_factory is MISSING:
                raise TypeError(f"it has no {key}")
        return cls(**known, extra=rest)

    def to_json(self) -> dict[str, Any]:
        """A mapping that JSON can hold."""
        content: dict[str, Any] = {}
        for each in fields(self)[1:]:
            value = getattr(self, each.name)
            if value is not None or not each.metadata.get("left out"):
                content[each.name.rstrip("_")] = plain(value)
        return {**content, **self.extra}

    def __getitem__(self, key: str) -> Any:
        """The value that stands under a key of the JSON.

        Raises:
            KeyError: if there is no such key.
        """
        return self.to_json()[key]


@dataclass(frozen=True, kw_only=True)
class Document(Part):
    """A part that is a file of its own."""

    file: ClassVar[str]
    """Its name in a run."""
    remedy: ClassVar[str]
    """What to do about a file that cannot be read."""

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read what `to_json` gave, without keys that this version does not know.

        Raises:
            ArtifactError: if parts are missing.
        """
        try:
            return replace(super().from_json(content), extra={})
        except TypeError as error:
            raise ArtifactError(f"{cls.file} is not whole ({error}); {cls.remedy}") from None


P = TypeVar("P", bound=Part)


@cache
def _hints(kind: type[Part]) -> dict[str, Any]:
    return get_type_hints(kind)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON, whose parts are read, is of a type.

    Example:
        >>> fits(1, float), fits(True, int), fits([1.0, None], list[float | None]), fits("a", Literal["b"])
        (True, False, True, False)
    """
    kind, of = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, each) for each in of)
    if kind is Literal:
        return value in of
    if kind in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(each, of[0]) for each in value)
    if kind is not None:
        return isinstance(value, Mapping) and all(fits(each, of[1]) for each in value.values())
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)


def rows_of(kind: type[P]) -> Callable[[Iterable[Any]], list[P]]:
    """A function that reads a list of parts of one kind."""
    return lambda rows: [kind.from_json(row) for row in rows]


def plain(value: Any) -> Any:
    """Parts, and lists of them, as mappings; anything else as it is."""
    if isinstance(value, Part):
        return value.to_json()
    return [plain(each) for each in value] if isinstance(value, list) else value
