"""The learning rate, found by short trials on held-out data: it decides more than anything else."""

from __future__ import annotations

from collections.abc import Generator

START = 0.004
"""Relative to the size of what is changed."""
MOST = 3
"""Trials."""


def rates() -> Generator[float, float, None]:
    """Rates to try, a factor of two apart, up or down from `START` until they get no better.

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
    tried: dict[float, float] = {}
    for rate in (START, 2 * START):
        tried[rate] = yield rate
    factor = 2.0 if tried[2 * START] < tried[START] else 0.5
    while len(tried) < MOST:
        edge = (max if factor > 1 else min)(tried)
        if min(tried, key=lambda rate: tried[rate]) != edge:
            return
        tried[edge * factor] = yield edge * factor
