"""Progress of work over items, and the seconds that stages take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

T = TypeVar("T")

Label = str | Callable[[], str]
"""What is being done; a function if the text changes on the way."""


class Track(Protocol):
    """Shows progress over some items."""

    def __call__(self, items: Iterable[T], label: Label, total: int) -> Iterable[T]:
        """The same items, one after the other."""
        ...


def silent(items: Iterable[T], label: Label, total: int) -> Iterable[T]:
    """Shows nothing: what a library does unless it is asked."""
    return items


@dataclass(slots=True)
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time that the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
