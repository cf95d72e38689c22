"""The ways to hold a group of weights in fewer numbers. A new one is a file here and an entry in `STRUCTURES`."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lowrank.core.analysis import Analysis, Numbers
from lowrank.core.rounding.cost import rounded_error
from lowrank.core.rounding.formats import FORMATS
from lowrank.core.structures.base import Curve, Option, Replacement, Structure
from lowrank.core.structures.dense import Dense
from lowrank.core.structures.neurons import Neurons
from lowrank.core.structures.pivoted import PivotedFactors
from lowrank.core.structures.product import Product
from lowrank.core.structures.residual import Residual
from lowrank.core.structures.rotary import RotaryPairs
from lowrank.core.structures.shared import SharedBasis
from lowrank.core.structures.spatial import Spatial
from lowrank.core.structures.two_factor import TwoFactor
from lowrank.core.weight import Group

COUPLED = (Product(), RotaryPairs(), Neurons(), SharedBasis())
"""Those of several weights, each of which measures what it can make of a coupling."""

STRUCTURES: tuple[Structure, ...] = (Dense(), TwoFactor(), PivotedFactors(), Spatial(), *COUPLED)

ROUNDED: tuple[Structure, ...] = (Residual(),)
"""Those of graphs in few bits, which only a budget of bytes of a file can choose."""

__all__ = [
    "COUPLED",
    "ROUNDED",
    "STRUCTURES",
    "Curve",
    "Dense",
    "Neurons",
    "Option",
    "PivotedFactors",
    "Product",
    "Replacement",
    "Residual",
    "RotaryPairs",
    "SharedBasis",
    "Spatial",
    "Structure",
    "TwoFactor",
    "factorized",
    "stored_in",
    "structure_named",
]


def structure_named(name: str) -> Structure | None:
    """The structure of this name, or None."""
    return next((s for s in (*STRUCTURES, *ROUNDED) if s.name == name), None)


def stored_in(curve: Curve, group: Group, analysis: Analysis, dtype: str) -> Curve:
    """What a structure offers when it is stored in a type; nothing where that cannot be.

    Args:
        curve: in floating numbers of 32 bits.
        group: whose it is.
        analysis: of the model.
        dtype: the type.
    """
    records = [analysis[name] for name in group.weights]
    if dtype in FORMATS and curve.structure == "pivoted":
        # What follows from pivots is a difference of large numbers, and there is no freedom to make them even:
        # measured, four bits of one such weight cost more than those of all others together.
        return Curve.empty(curve.structure)
    if dtype in FORMATS and any(dtype not in record.rounding for record in records):
        return Curve.empty(curve.structure)
    dense = [record.rounding.get(dtype, 0.0) for record in records]
    tail = records[0].plain.tail_energy
    added = rounded_error(curve.structure, dtype, dense, tail[np.minimum(curve.ranks, len(tail) - 1)])
    return replace(curve, errors=curve.errors + added, dtype=dtype)


def factorized(option: Option, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
    """What replaces each weight of an option's group, by weight name."""
    structure = structure_named(option.structure)
    assert structure is not None
    return structure.factorize(analysis.groups[option.group], option.rank, analysis, numbers)
