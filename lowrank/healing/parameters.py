"""What healing may change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def trainable(module: nn.Module, layers: Iterable[str]) -> dict[str, nn.Parameter]:
    """The factors, and every bias and norm of the model; ties once.

    Dense matrices stay, so that what an optimiser holds is bounded by the size of the factors.

    Args:
        module: the compressed model.
        layers: the names of the replaced layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> sorted(trainable(model, ["1"]))
        ['0.bias', '1.bias', '1.weight']
    """
    fronts = tuple(f"{layer}." for layer in layers)
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point() and (parameter.dim() <= 1 or name.startswith(fronts))
    }


def snapshot(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of their numbers."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def restore_(parameters: Mapping[str, nn.Parameter], known: Mapping[str, Tensor]) -> None:
    """Give them the numbers of a snapshot."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(known[name])
