"""Shares as people read them."""

from __future__ import annotations

import math


def percent(share: float) -> str:
    """A share in per cent with one digit, which is left out where it is zero.

    It is rounded down, so that what is below a limit never looks like it; what is no number is a dash.

    Example:
        >>> percent(0.8999), percent(0.9), percent(1.0)
        ('89.9 %', '90 %', '100 %')
    """
    if not math.isfinite(share):
        return "-"
    # What is a tenth but for rounding is not the one below.
    return f"{math.floor(1000 * share + 1e-6) / 10:g} %"
