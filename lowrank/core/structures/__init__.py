"""The ways to hold a group of weights in fewer numbers. A new one is a file here and an entry in `STRUCTURES`."""

from lowrank.core.structures.base import Curve, Option, Replacement, Structure
from lowrank.core.structures.dense import Dense
from lowrank.core.structures.spatial import Spatial
from lowrank.core.structures.two_factor import TwoFactor

STRUCTURES: tuple[Structure, ...] = (Dense(), TwoFactor(), Spatial())

__all__ = [
    "STRUCTURES",
    "Curve",
    "Dense",
    "Option",
    "Replacement",
    "Spatial",
    "Structure",
    "TwoFactor",
    "structure_named",
]


def structure_named(name: str) -> Structure | None:
    """The structure of this name, or None."""
    return next((s for s in STRUCTURES if s.name == name), None)
