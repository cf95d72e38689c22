"""Exact rewrites that come before anything is described: into the few shapes that can be factored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lowrank.nn.attention import split_attention_
from lowrank.nn.split import split_fused_


def normalize_(module: nn.Module) -> nn.Module:
    """Every `nn.MultiheadAttention` becomes one of four linear layers, every fused projection one of three."""
    split_attention_(module)
    split_fused_(module)
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
    config: Any = getattr(module, "config", None)
    switch = getattr(module, "set_experts_implementation", None)
    before = getattr(config, "_experts_implementation", None)
    if switch is None or before is None or not model._can_set_experts_implementation():
        return None
    switch(way)
    return str(before)
