"""Other numbers in the parameters of a module, for ever or for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.base import Change
from lowrank.core.weight import Weight


def numbers_of(
    module: nn.Module, weights: Mapping[str, Weight], changes: Mapping[str, Change]
) -> list[tuple[nn.Parameter, Tensor]]:
    """The parameters that some changes are of, and what each is to hold."""
    numbers: list[tuple[nn.Parameter, Tensor]] = []
    for name, (matrix, bias) in changes.items():
        weight, parameter = weights[name], module.get_parameter(name)
        stored = np.ascontiguousarray(weight.view.stored_from(matrix))
        numbers.append((parameter, torch.from_numpy(stored).to(parameter.data)))
        own = getattr(module.get_submodule(weight.layers[0].name), "bias", None) if bias is not None else None
        if bias is not None and isinstance(own, nn.Parameter):
            numbers.append((own, torch.from_numpy(bias).to(own.data)))
    return numbers


@contextmanager
def swapped(numbers: Iterable[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Parameters hold other numbers inside the block."""
    before: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for parameter, data in numbers:
            before.append((parameter, parameter.data))
            parameter.data = data
        yield
    finally:
        for parameter, data in reversed(before):
            parameter.data = data
