"""What the bench knows of a model: where it is, what it is calibrated on, and how its results are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import lowrank
from lowrank.backends.inputs import Feed


@dataclass(frozen=True)
class Real:
    """A model, and measures of a graph of it that know nothing of lowrank's own."""

    name: str
    source: Path
    settings: lowrank.Settings
    dense: Path
    """Its own graph."""
    example: Feed
    """What is timed."""
    judge: Callable[[Path], Mapping[str, float]]
    """Measures a graph against the dense one. The first measure is how often a user would get the same answer."""
