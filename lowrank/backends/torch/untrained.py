"""Outputs that come of weights that nobody trained: how near two of them are tells nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowrank.backends.inputs import TRIED, Signature
from lowrank.backends.torch.inputs import call
from lowrank.core.listing import listed


def untrained_in(module: nn.Module, missing: Sequence[str] = ()) -> list[str]:
    """Names of parameters that were never trained, in a module as it was filled from a checkpoint.

    Args:
        module: the module.
        missing: names of tensors that the checkpoint does not hold. The weight of a pooling layer that it does hold is
            one of them if its bias is still the zero that it began with, in a model whose other biases are not.
    """
    parameters = dict(module.named_parameters())
    return [name for name in dict.fromkeys((*missing, *_untouched_poolers(module))) if name in parameters]


def judged_by_trained(signature: Signature | str, module: nn.Module, untrained: Sequence[str]) -> Signature | str:
    """The signature, in which outputs that change with weights that were never trained are not judged by; as it is
    where no other output is left.

    Args:
        signature: of the module.
        module: any with the weights.
        untrained: names of parameters of it, as `untrained_in` tells.
    """
    if isinstance(signature, str) or len(signature.compared) < 2 or not untrained:
        return signature
    parameters = dict(module.named_parameters())
    feed = signature.example(2, min(TRIED, signature.max_sequence))
    with torch.no_grad():
        before = call(signature, module, feed)
        with _other_numbers([parameters[name] for name in untrained]):
            after = call(signature, module, feed)
    changed = {output.name for output in signature.compared if not torch.equal(before[output.name], after[output.name])}
    if len(changed) == len(signature.compared):
        return signature
    reason = f"it comes of weights that were never trained ({listed(untrained)})"
    outputs = (replace(output, unused=reason) if output.name in changed else output for output in signature.outputs)
    return replace(signature, outputs=tuple(outputs))


def _untouched_poolers(module: nn.Module) -> list[str]:
    linears = {path: layer for path, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    zero = {path for path, layer in linears.items() if isinstance(layer.bias, Tensor) and not layer.bias.any()}
    poolers = [path for path in linears if "pooler" in path.split(".")]
    trained = any(isinstance(layer.bias, Tensor) for path, layer in linears.items() if path not in {*zero, *poolers})
    return [f"{path}.weight" for path in poolers if path in zero] if trained else []


@contextmanager
def _other_numbers(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Random numbers in some parameters for as long as the block lasts."""
    generator, kept = torch.Generator().manual_seed(0), [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data
