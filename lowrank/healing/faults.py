"""What can go wrong in training: numbers that stop being finite, and memory that runs out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowrank.backends.inputs import Feed
from lowrank.healing.module_runner import ModuleRunner


def first_nonfinite(student: ModuleRunner, feeds: Sequence[Feed], otherwise: str) -> str:
    """The first parameter or layer of the student that holds or gives a number that is not finite, in words.

    Args:
        student: as it diverged.
        feeds: the batches that it learned from.
        otherwise: what is said where all of these are finite.
    """
    for name, parameter in student.module.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"{name} ({' x '.join(map(str, parameter.shape))}) is not finite any more"
    broken: list[str] = []

    def listen(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            if any(not torch.isfinite(tensor).all() for tensor in tensors):
                broken.append(name)

        return hook

    handles = [m.register_forward_hook(listen(name)) for name, m in student.module.named_modules() if name]
    try:
        with torch.no_grad():
            for feed in feeds:
                student(feed)
                if broken:
                    return f"{broken[0]} gives numbers that are not finite"
    finally:
        for handle in handles:
            handle.remove()
    return otherwise


def is_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of a device, did not hold what was asked for."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
