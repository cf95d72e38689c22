"""What becomes of a trained adapter: files of its own, or part of the factors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed, Signature
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan
from lowrank.core.structures import structure_named
from lowrank.errors import ExportError, UnsupportedModel
from lowrank.pipeline.run.layout import ADAPTABLE_FILE, ADAPTER_FILE, ADAPTER_FILES, ADAPTER_FOLDER

if TYPE_CHECKING:
    from lowrank.edge.adapters import Residuals
    from lowrank.healing.phases import Healing


def write_adapters(
    small: Backend, peft: Any, residuals: Residuals, shapes: Mapping[str, tuple[int, int]], stage: Path
) -> list[str]:
    """Write an adapter for PEFT and for ONNX Runtime, and the graph that takes it.

    Args:
        small: the compressed model, without the adapter.
        peft: a `peft.PeftModel` with it.
        residuals: of each layer `A` (inputs x rank) and `B` (rank x outputs), the scale included.
        shapes: (inputs, outputs) of each layer that an adapter may be for.
        stage: the folder.

    Returns:
        Problems: a graph that cannot be exported, or does not give what the model does, is not left for anyone to ship.
    """
    from lowrank.backends.torch import ModuleBackend
    from lowrank.edge.adapters import check_adapter, export_adaptable, write_adapter

    assert isinstance(small, ModuleBackend) and isinstance(small.signature, Signature)
    peft.save_pretrained(str(stage / ADAPTER_FOLDER))
    try:
        write_adapter(residuals, stage / ADAPTER_FILE)
        export_adaptable(small.module, small.signature, shapes, stage / ADAPTABLE_FILE)
        check_adapter(small.module, small.signature, residuals, stage / ADAPTABLE_FILE, stage / ADAPTER_FILE)
    except ExportError as error:
        for name in ADAPTER_FILES:
            if name != ADAPTER_FOLDER:
                (stage / name).unlink(missing_ok=True)
        return [str(error)]
    return []


def keep_adapter(small: Backend, folder: Path, stage: Path) -> list[str]:
    """Put an adapter of the dense model beside the compressed one, in all forms.

    Returns:
        Problems; see `write_adapters`.

    Raises:
        UnsupportedModel: if it does not fit.
    """
    from lowrank.backends.torch import ModuleBackend
    from lowrank.backends.torch.lora import residuals, with_adapter

    if not isinstance(small, ModuleBackend):
        raise UnsupportedModel(f"{folder}: an adapter can only be kept beside a model that can be built; see --arch")
    model = with_adapter(copy.deepcopy(small.module), folder)
    factors = residuals(model)
    return write_adapters(
        small, model, factors, {name: (len(a), b.shape[1]) for name, (a, b) in factors.items()}, stage
    )


def folded(
    healing: Healing, dense: Backend, small: Backend, feeds: Sequence[Feed] | None, plan: Plan, analysis: Analysis
) -> tuple[Backend, Plan, float]:
    """A copy of the compressed model with a trained adapter in its factors, its plan, and its held-out loss."""
    from lowrank.backends.torch import ModuleBackend
    from lowrank.healing.adapter import fold

    assert isinstance(small, ModuleBackend) and isinstance(dense, ModuleBackend) and healing.adapter is not None
    small = replace(small, module=copy.deepcopy(small.module))
    small = fold(small, dense, healing.adapter.residuals(), feeds)
    content: dict[str, Any] = plan.to_json()
    groups = analysis.groups
    for entry in content["groups"]:
        if structure_named(entry["structure"]).replaces:
            entry["rank"] = small.replaced[groups[entry["name"]].weights[0]]["rank"]
    after = replace(Plan.from_json(content, analysis, plan.budget), selector=plan.selector)
    return small, after, healing.task.judge_other(small.module)
