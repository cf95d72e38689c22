"""What goes to the terminal: results on stdout, progress and complaints on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from lowrank.progress import Label

T = TypeVar("T")


def console(stderr: bool = False) -> Any:
    """A console on which names from model files are text and nothing else."""
    from rich.console import Console

    # Names come from model files: nothing in them is markup or an emoji. A file or a pipe has no width: tables are then
    # as wide as they need to be.
    plain: dict[str, Any] = {"stderr": stderr, "highlight": False, "markup": False, "emoji": False}
    terminal = Console(**plain)
    return terminal if terminal.is_terminal else Console(**plain, width=400, no_color=True)


def print_table(table: Any) -> None:
    """Print a table with an empty line after it."""
    console().print(table, "")


def say(text: str) -> None:
    """Print a line, however long."""
    console().print(harmless(text), soft_wrap=True)


def harmless(text: str) -> str:
    """A text with everything spelled out that a terminal would obey, and what no encoding can hold.

    Example:
        >>> harmless("red: \x1b[31m") == "red: \\x1b[31m"
        True
    """
    return "".join(c if c.isprintable() or c in "\n\t\xa0" else c.encode("unicode_escape").decode() for c in text)


def notes(texts: Iterable[str]) -> None:
    """Print what the reader must know."""
    for note in texts:
        say(f"Note: {note}")


def print_json(content: Any) -> None:
    """Print JSON for machines."""
    sys.stdout.write(json.dumps(content, indent=1, allow_nan=False) + "\n")


def complain(text: str) -> None:
    """Print a line to stderr."""
    console(stderr=True).print(f"lowrank: {harmless(text)}", soft_wrap=True)


EVERY = 10.0
"""Seconds between two lines of a stage in a log."""


def logged(
    items: Iterable[T],
    label: Label,
    total: int,
    print_line: Callable[[str], object],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[T]:
    """The same items; while they are taken, lines for a log say how far a stage is, and how long it takes from there.

    Args:
        items: of the stage.
        label: what is being done.
        total: how many items there are.
        print_line: prints a line.
        clock: seconds.
    """
    text = label if isinstance(label, str) else label()
    print_line(f"{text} ({total})" if isinstance(label, str) else text)
    start = told = clock()
    for done, item in enumerate(items, 1):
        yield item
        now, before = clock(), text
        text = label if isinstance(label, str) else label()
        if done < total and now - told >= EVERY:
            left = (now - start) / done * (total - done)
            print_line(f"{text}: {100 * done // total} %, about {_time(left)} left")
            told = now
        elif text != before:
            print_line(text)


def _time(seconds: float) -> str:
    """A time as one says it.

    Example:
        >>> [_time(seconds) for seconds in (7.2, 200, 9000)]
        ['8 s', '4 min', '2.5 h']
    """
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def progress_bars() -> Iterator[Any]:
    """Bars on stderr while it is a terminal; where it is not, a line a stage, and one every ten seconds."""
    screen = console(stderr=True)
    if not screen.is_terminal:

        def plain(items: Iterable[T], label: Label, total: int) -> Iterable[T]:
            return logged(items, label, total, screen.print)

        yield plain
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as progress:

        def bar(items: Iterable[T], label: Label, total: int) -> Iterable[T]:
            if isinstance(label, str):
                return progress.track(items, total=total, description=label)
            return _shown(items, label, total)

        def _shown(items: Iterable[T], label: Callable[[], str], total: int) -> Iterator[T]:
            task = progress.add_task(label(), total=total)
            for item in items:
                yield item
                progress.update(task, advance=1, description=label())

        yield bar
