"""Exact rewrites of a module before its weights are listed: fused layers are split into linear ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lowrank.nn.attention import split_attention_
from lowrank.nn.split import split_fused_


def normalize_(module: nn.Module, where: Callable[[str], bool] = lambda _: True) -> nn.Module:
    """Every `nn.MultiheadAttention` becomes one of four linear layers, every fused projection one of three.

    Args:
        module: changed in place.
        where: whether a submodule of this name is.
    """
    split_attention_(module, where)
    split_fused_(module, where)
    return module


@contextmanager
def experts_as(module: nn.Module, way: str) -> Iterator[None]:
    """A mixture of experts computed in another way inside the block, if the module leaves a choice.

    `eager` multiplies by one expert after the other, `batched_mm` by the picked experts of all tokens at once. Others
    hand the whole stack to a fused kernel, which would need the dense numbers.
    """
    before = choose_experts_(module, way)
    try:
        yield
    finally:
        if before is not None:
            choose_experts_(module, before)


def choose_experts_(module: nn.Module, way: str) -> str | None:
    """Set how a mixture of experts is computed.

    Returns:
        How it was before; None if there is no choice.
    """
    model: Any = module
    before = experts_of(module)
    if before is not None:
        model.set_experts_implementation(way)
    return before


def experts_of(module: nn.Module) -> str | None:
    """How a mixture of experts is computed; None if there is no choice."""
    model: Any = module
    before = getattr(getattr(module, "config", None), "_experts_implementation", None)
    if not hasattr(module, "set_experts_implementation") or before is None:
        return None
    return str(before) if model._can_set_experts_implementation() else None
