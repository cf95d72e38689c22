"""How long work shows itself: a function that wraps the items it goes through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Shows progress over some items."""

    def __call__(self, items: Iterable[T], label: str, total: int) -> Iterable[T]:
        """The same items, one after the other."""
        ...


def silent(items: Iterable[T], label: str, total: int) -> Iterable[T]:
    """Shows nothing: what a library does unless it is asked."""
    return items
