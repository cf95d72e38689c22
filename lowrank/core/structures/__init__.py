"""The ways to hold a group of weights in fewer numbers. A new one is a file here and an entry in `STRUCTURES`."""

from collections.abc import Mapping

from lowrank.core.analysis import Analysis, Numbers
from lowrank.core.structures.base import Curve, Option, Replacement, Structure
from lowrank.core.structures.dense import Dense
from lowrank.core.structures.neurons import Neurons
from lowrank.core.structures.pivoted import PivotedFactors
from lowrank.core.structures.product import Product
from lowrank.core.structures.rotary import RotaryPairs
from lowrank.core.structures.shared import SharedBasis
from lowrank.core.structures.spatial import Spatial
from lowrank.core.structures.two_factor import TwoFactor

BONDED = (Product(), RotaryPairs(), Neurons(), SharedBasis())
"""Those of several weights, each of which measures what it can make of a bond."""

STRUCTURES: tuple[Structure, ...] = (Dense(), TwoFactor(), PivotedFactors(), Spatial(), *BONDED)

__all__ = [
    "BONDED",
    "STRUCTURES",
    "Curve",
    "Dense",
    "Neurons",
    "Option",
    "PivotedFactors",
    "Product",
    "Replacement",
    "RotaryPairs",
    "SharedBasis",
    "Spatial",
    "Structure",
    "TwoFactor",
    "factorized",
    "structure_named",
]


def structure_named(name: str) -> Structure | None:
    """The structure of this name, or None."""
    return next((s for s in STRUCTURES if s.name == name), None)


def factorized(option: Option, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
    """What replaces each weight of an option's group, by weight name."""
    structure = structure_named(option.structure)
    assert structure is not None
    return structure.factorize(analysis.groups[option.group], option.rank, analysis, numbers)
