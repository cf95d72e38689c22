"""Where numbers stop being finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowrank.healing.distill import Distillation


def first_nonfinite(task: Distillation, otherwise: str) -> str:
    """The first parameter or layer of the student that holds or gives a number that is not finite, in words.

    Args:
        task: with the student as it diverged.
        otherwise: what is known where all of these are finite.
    """
    for name, parameter in task.student.module.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"{name} ({' x '.join(map(str, parameter.shape))}) is not finite any more"
    found: list[str] = []

    def listen(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            if any(not torch.isfinite(tensor).all() for tensor in tensors):
                found.append(name)

        return hook

    handles = [m.register_forward_hook(listen(name)) for name, m in task.student.module.named_modules() if name]
    try:
        with torch.no_grad():
            for feed in task.fit.feeds:
                task.student(feed)
                if found:
                    return f"{found[0]} gives numbers that are not finite"
    finally:
        for handle in handles:
            handle.remove()
    return otherwise
