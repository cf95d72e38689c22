"""What structures of bonded weights have in common: a cost for each unit of rank, and errors from their analysis."""

from __future__ import annotations

import numpy as np

from lowrank.core.analysis import Analysis
from lowrank.core.structures.base import Curve, Option
from lowrank.core.weight import Group


def bonded_curve(structure: str, group: Group, analysis: Analysis, multiple: int, each: int) -> Curve:
    """Every multiple below the full rank that costs less than the dense weights; empty if the structure does not fit.

    Args:
        structure: its name.
        group: the bonded weights.
        analysis: that knows their errors.
        multiple: of what the ranks are to be.
        each: numbers for a unit of rank.
    """
    record = analysis.bond(group, structure)
    if record is None:
        return Curve.empty(structure)
    most = min(int(record.ranks[-1]) - 1, (analysis.params(group) - 1) // each)
    ranks = np.arange(multiple, most + 1, multiple, dtype=np.int64)
    return Curve(structure, ranks, ranks * each, record.error_at(ranks))


def bonded_option(structure: str, group: Group, analysis: Analysis, rank: int, each: int) -> Option:
    """The option at one rank.

    Raises:
        ValueError: if the structure does not fit, or has no such rank.
    """
    record = analysis.bond(group, structure)
    if record is None:
        raise ValueError(f"{structure} does not fit these weights")
    full = int(record.ranks[-1])
    if not 1 <= rank <= full:
        raise ValueError(f"its rank can be 1 to {full}")
    return Option(group.name, structure, rank, rank * each, float(record.error_at(np.array([rank]))[0]))
