"""Replacements in the places of layers: in a copy of a module, or in the module itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from lowrank.backends.torch.layers import dense_layer, empty_replacement, fill_, has_bias, put, record_of, tie
from lowrank.backends.torch.normalize import choose_experts_, experts_of, normalize_
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.factors import Factors
from lowrank.core.weight import Weight
from lowrank.nn import LowRankLinear

Records = dict[str, dict[str, Any]]
"""By weight name, what `record_of` gives."""


def replace_layers_(
    module: nn.Module, weights: Mapping[str, Weight], replacements: Mapping[str, Replacement]
) -> Records:
    """Put low-rank layers in a module; a tie stays one pair of tensors.

    What a frozen weight is replaced by is frozen.

    Args:
        module: of which the weights were described.
        weights: by name.
        replacements: by weight name.

    Returns:
        What was done, by weight name.
    """
    replaced: Records = {}
    shared: dict[int, LowRankLinear] = {}
    replaced_modules: set[int] = set()
    for name, replacement in replacements.items():
        weight = weights[name]
        first: Any = None
        for layer in weight.layers:
            if layer.kind != "experts" and id(module.get_submodule(layer.name)) in replaced_modules:
                # One module under two names.
                continue
            old, form, dense = dense_layer(module, layer.name, layer.kind, weight.view.stored)
            record = record_of(weight, replacement, has_bias(old, replacement))
            new = empty_replacement(old, record, dense, form)
            if first is None:
                fill_(new, weight, replacement, old, dense)
                first = new
            else:
                tie(new, first)
            _freeze_(new, dense.requires_grad)
            put(module, layer.name, new)
            replaced_modules.add(id(new))
            replaced[name] = record
        if isinstance(first, LowRankLinear) and isinstance(replacement.factors, Factors):
            # One array for several weights is one parameter.
            other = shared.setdefault(id(replacement.factors.right), first)
            first.right.weight = other.right.weight
    return replaced


def _freeze_(new: nn.Module, trains: bool) -> None:
    """Let everything but the bias, which has come along, be trained or not."""
    bias = getattr(new, "bias", None)
    for parameter in new.parameters():
        if parameter is not bias:
            parameter.requires_grad_(trains)


def replace_in_place_(
    module: nn.Module, weights: Mapping[str, Weight], replacements: Mapping[str, Replacement]
) -> Records:
    """The same in a module that somebody uses, as it is: nothing else of it is touched, and on an error nothing at all.

    Fused layers are split only where one of their parts is replaced.
    """
    places = [layer.name for name in replacements for layer in weights[name].layers]

    def holds_one(name: str) -> bool:
        return any(place.startswith(f"{name}.") for place in places)

    with undone_on_error(module):
        normalize_(module, holds_one)
        return replace_layers_(module, weights, replacements)


@contextmanager
def undone_on_error(module: nn.Module) -> Iterator[None]:
    """Every module under a root holds the parts that it held before, if the block fails."""
    before = [(each, dict(each.__dict__), dict(each._parameters), dict(each._modules)) for each in module.modules()]
    way = experts_of(module)
    try:
        yield
    except BaseException:
        for each, attributes, parameters, modules in before:
            each.__dict__.clear()
            each.__dict__.update(attributes)
            each._parameters.clear()
            each._parameters.update(parameters)
            each._modules.clear()
            each._modules.update(modules)
        if way is not None:
            choose_experts_(module, way)
        raise
