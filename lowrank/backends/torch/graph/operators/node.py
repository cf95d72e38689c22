"""What an operator is told of the node that it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lowrank.errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The settings of a node."""

    op: str
    domain: str
    """Empty for the standard's own operators."""
    name: str
    """Its own, or that of its first output."""
    attributes: Mapping[str, Any]
    opset: int
    """The version of its domain's operator set."""
    outputs: int
    """How many of its outputs, from the first on, something may read."""

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or what the standard says that it is where it is not given."""
        return self.attributes.get(name, default)

    def __str__(self) -> str:
        domain = f" of the domain {self.domain}" if self.domain else ""
        return f"{self.op}{domain} (node {self.name})"


Operator: TypeAlias = Callable[..., Tensor | tuple[Tensor, ...]]
"""From the facts of a node and its inputs, None for each that is left out, to its outputs."""
Refusal: TypeAlias = Callable[[NodeFacts], str | None]
"""Why a node with these settings cannot be computed; None if it can."""

TYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128,
    16: torch.bfloat16,
}
"""By the number that a file has for it."""


def ints(tensor: Tensor) -> list[int]:
    """The numbers of a tensor that holds sizes, axes or places."""
    return [int(number) for number in tensor.reshape(-1).tolist()]


def given_ints(node: NodeFacts, name: str, tensor: Tensor | None) -> list[int] | None:
    """What later operator sets have as an input, and earlier ones as an attribute; None if neither is given."""
    if tensor is not None:
        return ints(tensor)
    value = node.get(name)
    return None if value is None else [int(number) for number in value]


def wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices of which the negative ones count from the end, as those that count from the start."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def refused(node: NodeFacts, reason: str) -> UnsupportedModel:
    """The error for a node whose inputs ask for what cannot be computed."""
    return UnsupportedModel(f"{node} {reason}, which cannot be differentiated here; export the model again without it")
