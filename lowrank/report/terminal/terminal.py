"""What goes to the terminal: results on stdout, progress and complaints on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
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


@contextlib.contextmanager
def progress_bars() -> Iterator[Any]:
    """Bars on stderr while it is a terminal; a line a stage where it is not."""
    screen = console(stderr=True)
    if not screen.is_terminal:

        def plain(items: Iterable[T], label: Label, total: int) -> Iterable[T]:
            if isinstance(label, str):
                screen.print(f"{label} ({total})")
                return items
            return _told(items, label)

        def _told(items: Iterable[T], label: Callable[[], str]) -> Iterator[T]:
            last = ""
            for item in items:
                if (now := label()) != last:
                    screen.print(last := now)
                yield item

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
