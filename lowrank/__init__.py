"""lowrank makes a trained transformer smaller and faster on a CPU, after training, by low-rank factors.

Verbs: `analyze`, `select`, `compress`, `heal`, `truncate`, `cut_vocabulary`, `export`, `load`; `compress_` is one call
in place, on a live module. Everything is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank.integrations.hook import register_when_imported
from lowrank.version import __version__

if TYPE_CHECKING:
    from lowrank.backends import Opening, open_model
    from lowrank.backends.torch import load
    from lowrank.core.analysis import Analysis
    from lowrank.core.budget import Budget
    from lowrank.core.plan import Plan
    from lowrank.core.selection.knapsack import Knapsack
    from lowrank.core.selection.simple import Energy, RelativeError, Uniform
    from lowrank.errors import LowRankError
    from lowrank.nn import LowRankLinear
    from lowrank.pipeline import (
        Compressed,
        Execution,
        Settings,
        Training,
        analyze,
        compress,
        compress_,
        cut_vocabulary,
        export,
        export_elastic,
        export_hub,
        heal,
        prepare_,
        select,
        sweep,
        truncate,
        tune,
    )
    from lowrank.results.report import Report

_HOMES = {
    "lowrank.backends": ("Opening", "open_model"),
    "lowrank.backends.torch": ("load",),
    "lowrank.core.analysis": ("Analysis",),
    "lowrank.core.budget": ("Budget",),
    "lowrank.core.plan": ("Plan",),
    "lowrank.core.selection.knapsack": ("Knapsack",),
    "lowrank.core.selection.simple": ("Energy", "RelativeError", "Uniform"),
    "lowrank.errors": ("LowRankError",),
    "lowrank.nn": ("LowRankLinear",),
    "lowrank.pipeline": (
        "Compressed",
        "Execution",
        "Settings",
        "Training",
        "analyze",
        "compress",
        "compress_",
        "cut_vocabulary",
        "export",
        "export_elastic",
        "export_hub",
        "heal",
        "prepare_",
        "select",
        "sweep",
        "truncate",
        "tune",
    ),
    "lowrank.results.report": ("Report",),
}
"""By module the names that it gives to the package."""

__all__ = [
    "Analysis",
    "Budget",
    "Compressed",
    "Energy",
    "Execution",
    "Knapsack",
    "LowRankError",
    "LowRankLinear",
    "Opening",
    "Plan",
    "RelativeError",
    "Report",
    "Settings",
    "Training",
    "Uniform",
    "__version__",
    "analyze",
    "compress",
    "compress_",
    "cut_vocabulary",
    "export",
    "export_elastic",
    "export_hub",
    "heal",
    "load",
    "open_model",
    "prepare_",
    "select",
    "sweep",
    "truncate",
    "tune",
]


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'lowrank' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


# `AutoModel.from_pretrained` then loads compressed models.
register_when_imported()
