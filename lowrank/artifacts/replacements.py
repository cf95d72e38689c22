"""Replacements as pieces of a journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.artifacts.journal import Arrays, Codec, Piece
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement


def _packed(replacements: Mapping[str, Replacement]) -> Piece:
    """Arrays by number, and where they belong. An array that several share is kept once, and shared again."""
    arrays: dict[str, NDArray[Any]] = {}
    numbers: dict[int, str] = {}

    def packed(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return {"value": value}
        number = numbers.setdefault(id(value), str(len(numbers)))
        arrays[number] = value
        return {"array": number}

    facts: dict[str, Any] = {}
    for name, replacement in replacements.items():
        factors = replacement.factors
        facts[name] = {
            "structure": replacement.structure,
            "factors": {f.name: packed(getattr(factors, f.name)) for f in fields(factors)},
            "places": {key: packed(getattr(replacement, key)) for key in ("bias", "rows", "cols")},
        }
    return arrays, facts


def _unpacked(piece: Piece) -> Mapping[str, Replacement]:
    arrays, facts = piece
    return {name: _replacement(entry, arrays) for name, entry in facts.items()}


def _replacement(entry: Mapping[str, Any], arrays: Arrays) -> Replacement:
    def unpacked(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: arrays[v["array"]] if "array" in v else v["value"] for key, v in values.items()}

    factors: Any = structure_named(entry["structure"]).factors(**unpacked(entry["factors"]))
    return Replacement(entry["structure"], factors, **unpacked(entry["places"]))


REPLACEMENTS = Codec(_packed, _unpacked)
"""For replacements by weight name."""
