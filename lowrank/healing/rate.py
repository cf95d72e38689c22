"""The learning rate, found by short trials on held-out data: it decides more than anything else."""

from __future__ import annotations

from collections.abc import Generator

START = 0.004
"""Relative to the size of what is changed."""


def rates() -> Generator[float, float, None]:
    """Three rates to try, a factor of two apart: `START`, twice that, and one further in the better direction.

    It is sent the held-out loss that each of them came to.

    Example:
        >>> asked, tried = rates(), []
        >>> rate = next(asked)
        >>> try:
        ...     while True:
        ...         tried.append(rate)
        ...         rate = asked.send(abs(rate - 0.012))
        ... except StopIteration:
        ...     tried
        [0.004, 0.008, 0.016]
    """
    low = yield START
    high = yield 2 * START
    yield 4 * START if high < low else START / 2
