"""Policies that choose ranks, by the names that the command line knows; imported when one is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

SELECTORS = {
    "knapsack": "lowrank.core.selection.knapsack:Knapsack",
    "uniform": "lowrank.core.selection.simple:Uniform",
    "energy": "lowrank.core.selection.simple:Energy",
    "relative-error": "lowrank.core.selection.simple:RelativeError",
}
"""Name to `module:Class`. This line is all that a new one needs beside its class."""


def selector_type(name: str) -> Any:
    """The class of a policy."""
    module, _, attribute = SELECTORS[name].partition(":")
    return getattr(import_module(module), attribute)


def selector_name(selector: object) -> str:
    """What a policy is called in plans: by its name in the table, its `name_in_plans`, or else by its class."""
    kind = f"{type(selector).__module__}:{type(selector).__qualname__}"
    return next((name for name, home in SELECTORS.items() if home == kind), getattr(selector, "name_in_plans", kind))
