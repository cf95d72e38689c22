"""Low-rank layers in the places of dense ones: with their numbers, or empty as a record describes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.artifacts.files import RECORD_FILE
from lowrank.backends.torch.heads import narrowed_as_, set_widths_
from lowrank.backends.torch.layers import (
    dense_layer,
    empty_replacement,
    fill_,
    fill_bias_,
    has_bias,
    put,
    record_of,
    register_optional_layers,
    tie,
)
from lowrank.backends.torch.normalize import choose_experts_, experts_of, normalize_
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.factors import Factors
from lowrank.core.weight import Weight
from lowrank.errors import ArtifactError, misfit
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
                # Each layer of a tie has a bias of its own.
                tie(new, first)
                fill_bias_(new, weight, replacement, old, dense)
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
    module: nn.Module,
    weights: Mapping[str, Weight],
    replacements: Mapping[str, Replacement],
    tried: Mapping[str, Mapping[str, Any]],
) -> Records:
    """Put low-rank layers in a live module: nothing else of it is changed, and on an error nothing at all.

    Fused layers are split only where one of their parts is replaced.

    Args:
        module: changed in place.
        weights: by name.
        replacements: by weight name.
        tried: the records of a copy in which the same was done, which show how narrow its attentions can be.
    """
    with undone_on_error(module):
        _normalize_around(module, [layer.name for name in replacements for layer in weights[name].layers])
        return narrowed_as_(module, replace_layers_(module, weights, replacements), tried)


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


def _normalize_around(module: nn.Module, places: Sequence[str]) -> None:
    """Split the fused layers that hold one of some layers, and no others."""
    normalize_(module, lambda name: any(place.startswith(f"{name}.") for place in places))


def put_layers(
    module: nn.Module,
    replaced: Mapping[str, Any],
    origin: Path | str,
    place_of: Callable[[str], str | None] = lambda layer: layer,
) -> list[str]:
    """Put what a record tells of in the place of dense layers.

    Args:
        module: the dense model, changed in place.
        replaced: for each weight what `record_of` gave.
        origin: the folder, for errors.
        place_of: the name that a layer has in this module; None if this module has no such layer.

    Returns:
        The names in this module of the layers that were put in.

    Raises:
        ArtifactError: if a layer cannot be what the record says.
    """
    register_optional_layers()
    replaced_modules: set[int] = set()
    names: list[str] = []
    for entry in replaced.values():
        first: Any = None
        for layer in map(place_of, entry["layers"]):
            if layer is None:
                continue
            names.append(layer)
            if entry["kind"] != "experts" and id(module.get_submodule(layer)) in replaced_modules:
                # One module under two names.
                continue
            old, form, dense = dense_layer(module, layer, entry["kind"], entry["stored"])
            if form.kind == "linear" and entry["kind"] == "linear" and form.view.stored != entry["stored"]:
                raise ArtifactError(
                    f"{origin}: {layer} stores its weight as {form.view.stored!r}, but its factors were made without "
                    "knowing the module; compress again with --arch or --config"
                )
            _check_sizes(origin, layer, entry, max(form.view.shape(dense.shape)))
            tied = {"bias": isinstance(getattr(old, "bias", None), Tensor)} if len(entry["layers"]) > 1 else {}
            new = empty_replacement(old, {**entry, **tied}, dense, form)
            if first is not None:
                tie(new, first)
            first = first or new
            replaced_modules.add(id(new))
            put(module, layer, new)
            set_widths_(module, layer, entry, origin)
    return names


def prepare_layers_(module: nn.Module, replaced: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Empty low-rank layers in a dense module; layers that are split are those that hold one of them.

    Raises:
        ArtifactError: if they are of another module.
    """
    claim = f"the layers are not of this {type(module).__name__}"
    with misfit(claim, "give the dense module that was compressed, built anew"):
        places = [str(layer) for entry in replaced.values() for layer in entry["layers"]]
        with undone_on_error(module), torch.random.fork_rng(devices=[]):
            _normalize_around(module, places)
            put_layers(module, replaced, "the record of layers")
    return module


def _check_sizes(origin: Path | str, layer: str, entry: Mapping[str, Any], most: int) -> None:
    """No layer is larger than the one that it takes the place of, whatever the record says."""
    heads = entry.get("attention")
    inside = () if heads is None else (heads["count"], heads["width"], heads["count"] * heads["width"])
    for size in (entry["rank"], *entry.get("shape", ()), *inside):
        if not isinstance(size, int) or not 0 <= size <= most:
            raise ArtifactError(
                f"{origin}: {RECORD_FILE} or config.json gives {layer} the size {str(size)[:40]}, and its dense layer "
                f"has at most {most:,}; compress the original again"
            )
