"""lowrank makes a trained transformer smaller and faster on a CPU, after training, by low-rank factors.

Verbs: `analyze`, `select`, `compress`, `heal`, `truncate`, `export`, `load`; `compress_` is one call in place, on a
live module. Everything is imported when it is first used.
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
    "Analysis": "lowrank.core.analysis",
    "Budget": "lowrank.core.budget",
    "Compressed": "lowrank.pipeline",
    "Energy": "lowrank.core.selection.simple",
    "Knapsack": "lowrank.core.selection.knapsack",
    "Execution": "lowrank.pipeline",
    "LowRankError": "lowrank.errors",
    "LowRankLinear": "lowrank.nn",
    "Opening": "lowrank.backends",
    "Plan": "lowrank.core.plan",
    "RelativeError": "lowrank.core.selection.simple",
    "Report": "lowrank.results.report",
    "Settings": "lowrank.pipeline",
    "Training": "lowrank.pipeline",
    "Uniform": "lowrank.core.selection.simple",
    "analyze": "lowrank.pipeline",
    "compress": "lowrank.pipeline",
    "compress_": "lowrank.pipeline",
    "export": "lowrank.pipeline",
    "export_elastic": "lowrank.pipeline",
    "export_hub": "lowrank.pipeline",
    "heal": "lowrank.pipeline",
    "load": "lowrank.backends.torch",
    "open_model": "lowrank.backends",
    "prepare_": "lowrank.pipeline",
    "select": "lowrank.pipeline",
    "sweep": "lowrank.pipeline",
    "truncate": "lowrank.pipeline",
    "tune": "lowrank.pipeline",
}

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
    home = _HOMES.get(name)
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
