"""English text that comes with lowrank, for models whose users give no text of their own, and to judge all by.

Where it is from, and under which licences, is in `NOTICE.txt` beside it; `tools/make_text.py` makes it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from lowrank.calibrate.text import read_text

Style = Literal["lines", "prose", "technical"]
"""`lines`: sentences and definitions, some ten words each. `prose`: documents of some 500 tokens, of speeches, an
encyclopedia of countries, a novel and a glossary. `technical`: the same of manuals of software."""
EVERY = 10
"""One text of so many is set aside, to judge by: nothing is ever calibrated or trained on it."""


def builtin_text(style: Style) -> list[str]:
    """The texts of a style to calibrate and to train on, in random order.

    Example:
        >>> len(builtin_text("lines"))
        9000
    """
    return [text for i, text in enumerate(_texts(style)) if i % EVERY]


def judging_text(style: Style) -> list[str]:
    """The texts of a style that are set aside.

    Example:
        >>> len(judging_text("lines"))
        1000
    """
    return _texts(style)[::EVERY]


@cache
def _texts(style: Style) -> list[str]:
    return read_text(Path(__file__).with_name(f"{style}.txt.gz")).splitlines()
