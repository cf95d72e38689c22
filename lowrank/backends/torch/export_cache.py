"""A causal language model as ONNX with its key-value cache as inputs and outputs, for generating token by token."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.backends.inputs import MASK
from lowrank.backends.onnx.save import save_model
from lowrank.backends.torch.export import trace
from lowrank.backends.torch.results import named_tensors
from lowrank.backends.torch.tensors import module_in_float32
from lowrank.errors import ExportError

BATCH, POSITIONS = "batch_size", "position_ids"


def export_with_past(module: nn.Module, path: Path, opset: int) -> None:
    """Write a graph that takes `input_ids`, `attention_mask` and the cache, and gives `logits`, with all other outputs
    of the model, and the cache after.

    The cache is `past_key_values.N.key` and `.value` (batch x heads x past x width) going in and `present.N.key` and
    `.value` coming out, as `optimum` names them. The mask covers past and new tokens. A past of length 0 starts a text.
    A model that reads positions takes `position_ids` too: in a batch that is padded on the left, a text begins at 0.

    Raises:
        ExportError: if the module is no causal language model of transformers, or cannot be traced.
    """
    module = module_in_float32(module)
    shapes = cache_shapes(module)
    placed = reads_positions(module)
    wrapped = _WithCache(module, len(shapes)).eval()
    batch, past, new = 2, 3, 4
    ids = torch.zeros(batch, new, dtype=torch.int64)
    mask = torch.ones(batch, past + new, dtype=torch.int64)
    at = torch.arange(past, past + new).expand(batch, new) if placed else None
    floats = [torch.zeros(batch, heads, past, width) for heads, width in shapes for _ in "kv"]
    auto = torch.export.Dim.DYNAMIC
    rows = {0: auto, 1: auto}
    dynamic: Any = (rows, rows, rows if placed else None, tuple({0: auto, 2: auto} for _ in floats))
    names = [f"{i}.{part}" for i in range(len(shapes)) for part in ("key", "value")]
    inputs = ["input_ids", MASK, *([POSITIONS] if placed else []), *(f"past_key_values.{n}" for n in names)]
    outputs = [*wrapped.named, *(f"present.{n}" for n in names)]
    model = trace(wrapped, (ids, mask, at, tuple(floats)), dynamic, inputs, outputs, opset)
    _name_axes(model)
    save_model(model, path)


def cache_shapes(module: nn.Module) -> list[tuple[int, int]]:
    """Heads and width of each layer's keys and values.

    Raises:
        ExportError: if the module has no such cache.
    """
    if not getattr(getattr(module, "config", None), "is_encoder_decoder", True) and hasattr(module, "generate"):
        try:
            with torch.no_grad():
                result: Any = module(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=True)
            return [(layer.keys.shape[1], layer.keys.shape[3]) for layer in result.past_key_values.layers]
        except Exception:
            # Whatever it lacks, it is no such model: said below.
            pass
    raise ExportError(
        f"{type(module).__name__} has no key-value cache of one tensor pair a layer, so --with-past cannot be had; "
        "it is for causal language models of transformers"
    )


def reads_positions(module: nn.Module) -> bool:
    """Whether what a causal language model gives depends on the `position_ids` that it takes."""
    if POSITIONS not in inspect.signature(module.forward).parameters:
        return False
    ids = torch.arange(4)[None]
    # Places count for some, distances for others. Without a mask, places in disorder are taken for several texts.
    orders = ids, torch.tensor([[0, 1, 3, 2]])
    fed = {"input_ids": ids, MASK: torch.ones_like(ids), "use_cache": False}
    with torch.no_grad():
        one, other = (module(**fed, position_ids=order).logits for order in orders)
    return not torch.equal(one, other)


class _WithCache(nn.Module):
    """A language model as a function of tensors alone: the cache is a list of them."""

    def __init__(self, module: nn.Module, layers: int) -> None:
        super().__init__()
        self.module, self.layers = module, layers
        with torch.no_grad():
            shown = module(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=True)
        self.named = tuple(named_tensors(shown).tensors)
        """What it gives beside the cache."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None, past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        pairs = [(past[2 * i], past[2 * i + 1]) for i in range(self.layers)]
        result = self.module(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=DynamicCache(pairs),
            use_cache=True,
            **({} if position_ids is None else {POSITIONS: position_ids}),
        )
        after = [t for layer in result.past_key_values.layers for t in (layer.keys, layer.values)]
        return (*named_tensors(result).tensors.values(), *after)


def name_axes(value: Any, names: Mapping[int, str]) -> None:
    """Give open axes of an input or an output of a graph the names that they have with optimum: transformers.js makes
    the first cache of a text of them, and takes an axis whose name it does not know for an empty one."""
    import onnx_ir as ir

    value.shape = ir.Shape([d if isinstance(d, int) else names.get(i, d) for i, d in enumerate(value.shape)])


def _name_axes(model: Any) -> None:
    past, new = "past_sequence_length", "sequence_length"
    total = f"{past} + {new}"
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name == MASK:
            name_axes(value, {0: BATCH, 1: total})
        elif value.name.startswith(("past", "present")):
            name_axes(value, {0: BATCH, 2: past if value.name.startswith("past") else total})
        else:
            name_axes(value, {0: BATCH, 1: new})
