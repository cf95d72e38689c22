"""Names in a sentence: the first of them, and how many there are beside."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 4


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are.

    Example:
        >>> listed(["a", "b"])
        'a, b'
        >>> listed(["a", "b", "c", "d", "e", "f"])
        'a, b, c, d and 2 more'
    """
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
