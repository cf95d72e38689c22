"""Weights that are stored as parts which their layer multiplies first: weight_norm, spectral_norm, pruning."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Kind = Literal["weight_norm", "spectral_norm", "pruning"]

SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "weight_norm": ("_g", "_v"),
    "spectral_norm": ("_orig", "_u", "_v"),
    "pruning": ("_orig", "_mask"),
}
"""What torch puts after the name of a weight for its parts, in hooks."""
PARAMETRIZED = re.compile(r"(?P<layer>(?:.*\.)?)parametrizations\.(?P<name>[^.]+)\.(?P<part>.+)")
"""The name of a part in torch.nn.utils.parametrize."""
PARTS: dict[frozenset[str], tuple[Kind, tuple[str, ...]]] = {
    frozenset({"original0", "original1"}): ("weight_norm", ("original0", "original1")),
    frozenset({"original", "0._u", "0._v"}): ("spectral_norm", ("original", "0._u", "0._v")),
}
"""Parts whose product is known."""

REMEDY = "save the model after torch.nn.utils.parametrize.remove_parametrizations (or remove_weight_norm, ...)"


@dataclass(frozen=True)
class Product:
    """A weight that is the product of what is stored."""

    name: str
    """As the layer calls it: `up.weight`."""
    kind: Kind
    parts: tuple[str, ...]
    """Names of what is stored, in the order of `SUFFIXES`."""


def products_in(names: Collection[str]) -> list[Product]:
    """The weights among some names that are stored as parts whose product is known.

    Example:
        >>> [each.name for each in products_in(["up.weight_g", "up.weight_v", "up.bias"])]
        ['up.weight']
    """
    found: dict[str, Product] = {}
    parametrized: dict[tuple[str, str], set[str]] = {}
    for name in names:
        match = PARAMETRIZED.fullmatch(name)
        if match is not None:
            parametrized.setdefault((match["layer"], match["name"]), set()).add(match["part"])
            continue
        for kind, suffixes in SUFFIXES.items():
            stem = name.removesuffix(suffixes[0])
            parts = tuple(stem + suffix for suffix in suffixes)
            if stem != name and "weight" in stem.rpartition(".")[2] and all(part in names for part in parts):
                found.setdefault(stem, Product(stem, kind, parts))
    for (layer, name), parts in parametrized.items():
        if frozenset(parts) in PARTS:
            kind, order = PARTS[frozenset(parts)]
            start = f"{layer}parametrizations.{name}."
            found[f"{layer}{name}"] = Product(f"{layer}{name}", kind, tuple(start + part for part in order))
    return [each for each in found.values() if each.name not in names]


def why_left(name: str, names: Collection[str]) -> str:
    """Why a part of a weight cannot be factored by itself; empty if it is none."""
    match = PARAMETRIZED.fullmatch(name)
    if match is not None:
        return f"a part of {match['layer']}{match['name']}, which only its module computes; {REMEDY}"
    for kind, suffixes in SUFFIXES.items():
        for suffix in suffixes:
            stem = name.removesuffix(suffix)
            if stem != name and "weight" in stem and all(stem + other in names for other in suffixes):
                return f"a part of {stem}, which its layer computes ({kind}); {REMEDY}"
    return ""
