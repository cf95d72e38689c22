"""The tensors in what a module returns, by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from torch import Tensor

from lowrank.backends.outputs import CACHES, OUTPUT


@dataclass(frozen=True, slots=True)
class Result:
    """What a forward pass gave."""

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    left_out: list[str] = field(default_factory=list[str])
    """What is no tensor, by name; caches are not told."""


def named_tensors(result: Any) -> Result:
    """All tensors in a result, in order: by the names of its fields or keys, else `output`, or `output_0`, `output_1`.

    Tuples of tensors under a name are told apart by `.0`, `.1`; so are mappings in mappings, by their keys. Of a result
    of `transformers` the results of parts of the model are left out, and so are the loss and caches.

    Example:
        >>> from torch import zeros
        >>> list(named_tensors((zeros(1), {"a": zeros(1)})).tensors), list(named_tensors([zeros(1)]).tensors)
        (['output_0', 'output_1.a'], ['output'])
    """
    found = Result()
    named = _named(result)
    of_transformers = isinstance(result, Mapping) and is_dataclass(result)
    if named is None:
        items = [item for item in _items(result) if item is not None]
        named = [(OUTPUT, items[0])] if len(items) == 1 else [(f"{OUTPUT}_{i}", item) for i, item in enumerate(items)]
    for name, value in named:
        if value is None or CACHES.match(name):
            continue
        if of_transformers and (name == "loss" or isinstance(value, Mapping)):
            found.left_out.append(name)
            continue
        inner = dict(_flat(name, value))
        found.tensors.update(inner)
        if not inner and not isinstance(value, bool | int | float | str):
            found.left_out.append(name)
    return found


def _named(result: Any) -> list[tuple[str, Any]] | None:
    """Names and values of what has names; None for anything else."""
    if isinstance(result, Mapping):
        return [(str(key), value) for key, value in result.items()]
    if isinstance(result, tuple) and hasattr(result, "_asdict"):
        named: Any = result
        return list(named._asdict().items())
    if is_dataclass(result) and not isinstance(result, type):
        return [(each.name, getattr(result, each.name)) for each in fields(result)]
    return None


def _items(result: Any) -> Iterable[Any]:
    return result if isinstance(result, list | tuple) else (result,)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a value, each with the way to it."""
    if isinstance(value, Tensor):
        yield name, value
        return
    inner = _named(value)
    if inner is None and isinstance(value, list | tuple):
        inner = [(str(i), each) for i, each in enumerate(value)]
    for key, each in inner or ():
        yield from _flat(f"{name}.{key}", each)
