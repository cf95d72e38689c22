"""Ctrl-C that ends the program even where another library swallows it.

An exception that is raised in a finaliser or a callback is only printed, and one
that is raised inside a call to another language comes back as an error of that call.
"""

from __future__ import annotations

import signal

_seen: list[int] = []


def remember_interrupts() -> None:
    """Remember every Ctrl-C from now on. For programs; a library leaves signals alone."""
    _seen.clear()

    def interrupt(number: int, frame: object) -> None:
        _seen.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


def was_interrupted() -> bool:
    """Whether Ctrl-C was pressed since `remember_interrupts`."""
    return bool(_seen)


def heed_swallowed() -> None:
    """Raise `KeyboardInterrupt` if Ctrl-C was pressed and the program still runs."""
    if was_interrupted():
        raise KeyboardInterrupt
