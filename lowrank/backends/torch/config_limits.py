"""Limits on what a config.json may claim, checked before a model is built from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules import module as registries

from lowrank.backends.torch.hooks import removed_after
from lowrank.errors import UnsupportedModel

LIMITS = {"layer": 1 << 12, "depth": 1 << 12, "label": 1 << 20, "num_": 1 << 24, "n_": 1 << 24}
"""The largest count under a key that contains a word or begins with it: a config alone makes lists of such lengths."""


def check_config(path: Path, content: dict[str, Any]) -> None:
    """Check that a config has only counts that a model can have, and names no code.

    Raises:
        UnsupportedModel: if it does.
    """
    waiting: list[Any] = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        if not isinstance(value, dict):
            continue
        for key, inner in value.items():
            waiting.append(inner)
            limit = _limit(key)
            if isinstance(inner, int | float) and limit is not None and inner > limit:
                raise UnsupportedModel(
                    f"{path}: {key!r} is {inner:,}, which no model has; correct it, or copy it again"
                )
            if key.endswith("_implementation") and any("/" in text for text in _texts(inner)):
                raise UnsupportedModel(
                    f"{path}: {key!r} names code from a hub ({str(inner)[:60]!r}), and code that comes with a model is "
                    f"not run; take the entry out"
                )


def _limit(key: str) -> int | None:
    limits = [most for word, most in LIMITS.items() if (key.startswith(word) if word[-1] == "_" else word in key)]
    return min(limits, default=None)


def _texts(value: Any) -> list[str]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


@contextmanager
def few_parts(origin: Path, stored: int) -> Iterator[None]:
    """Refuse, as it is built inside the block, a module of many more parts than there are stored tensors.

    Raises:
        UnsupportedModel: from where the module is built.
    """
    most, count_of_parts = 1000 + 32 * stored, 0

    def count(module: nn.Module, name: str, part: Any) -> None:
        nonlocal count_of_parts
        count_of_parts += 1
        if count_of_parts > most:
            raise UnsupportedModel(
                f"{origin}: config.json describes a model of many more parts than the checkpoint's {stored:,} tensors; "
                "give the config.json that belongs to these weights"
            )

    handles = [
        registries.register_module_module_registration_hook(count),
        registries.register_module_parameter_registration_hook(count),
    ]
    with removed_after(handles):
        yield
