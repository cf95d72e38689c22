"""The ways to hold a group of weights in fewer numbers. A new one is a file here and a line of `STRUCTURES`.

A structure is imported when it is first asked for, so that their names cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank.core.analysis import Analysis, Numbers
    from lowrank.core.structures.base import Option, Replacement, Structure

STRUCTURES = {
    "dense": "lowrank.core.structures.dense:Dense",
    "two_factor": "lowrank.core.structures.two_factor:TwoFactor",
    "pivoted": "lowrank.core.structures.pivoted:PivotedFactors",
    "spatial": "lowrank.core.structures.spatial:Spatial",
    "product": "lowrank.core.structures.product:Product",
    "rotary": "lowrank.core.structures.rotary:RotaryPairs",
    "neurons": "lowrank.core.structures.neurons:Neurons",
    "shared": "lowrank.core.structures.shared:SharedBasis",
    "residual": "lowrank.core.structures.residual:Residual",
}
"""Name, as it stands in a plan, to `module:Class`; the first one leaves weights as they are."""


def structure_named(name: str) -> Structure:
    """The structure of this name.

    Raises:
        ValueError: if there is none; the message says which there are.
    """
    if name not in STRUCTURES:
        raise ValueError(f"there is no structure {name[:40]!r}; there is {', '.join(STRUCTURES)}")
    return _instance(STRUCTURES[name])


@cache
def _instance(home: str) -> Structure:
    module, _, attribute = home.partition(":")
    return getattr(import_module(module), attribute)()


def structures() -> tuple[Structure, ...]:
    """All structures, in the order of the registry."""
    return tuple(structure_named(name) for name in STRUCTURES)


def factorize_option(option: Option, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
    """What replaces each weight of an option's group, by weight name."""
    group = analysis.groups[option.group]
    return structure_named(option.structure).factorize(group, option.rank, analysis, numbers)
