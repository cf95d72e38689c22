"""A set that results are judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowrank.backends.inputs import Feed

Origin = Literal["own", "random", "built-in", "changed"]
"""Where samples are from: the user's data (or the text that stands in for them); random numbers; text that is shipped
and that nothing is learnt from; the user's data, changed."""


@dataclass(frozen=True, eq=False)
class JudgingSet:
    """Batches that nothing was chosen or trained by."""

    name: str
    """As it is shown: `your data`, `passages of 256 tokens`."""
    feeds: tuple[Feed, ...]
    origin: Origin = "own"
    about: str = ""
    """What the samples are, in a sentence's words."""
    left_out: str = ""
    """Why there are none."""
