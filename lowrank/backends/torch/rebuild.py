"""Empty low-rank layers in the places that a record names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.artifacts.files import RECORD_FILE
from lowrank.backends.torch.layers import dense_layer, empty_replacement, put, register_optional_layers, tie
from lowrank.backends.torch.normalize import normalize_
from lowrank.backends.torch.replace import undone_on_error
from lowrank.errors import ArtifactError, LowRankError, first_line


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
            new = empty_replacement(old, entry, dense, form)
            if first is not None:
                tie(new, first)
            first = first or new
            replaced_modules.add(id(new))
            put(module, layer, new)
    return names


def prepare_layers_(module: nn.Module, replaced: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Empty low-rank layers in a dense module; layers that are split are those that hold one of them.

    Raises:
        ArtifactError: if they are of another module.
    """
    try:
        places = [str(layer) for entry in replaced.values() for layer in entry["layers"]]
        with undone_on_error(module), torch.random.fork_rng(devices=[]):
            normalize_(module, lambda name: any(place.startswith(f"{name}.") for place in places))
            put_layers(module, replaced, "the record of layers")
    except (KeyError, TypeError, AttributeError, ValueError, AssertionError, IndexError, RuntimeError) as error:
        if isinstance(error, LowRankError):
            raise
        raise ArtifactError(
            f"the layers are not of this {type(module).__name__} ({type(error).__name__}: {first_line(error)}); give "
            "the dense module that was compressed, built anew"
        ) from None
    return module


def _check_sizes(origin: Path | str, layer: str, entry: Mapping[str, Any], most: int) -> None:
    """No layer is larger than the one that it takes the place of, whatever the record says."""
    for size in (entry["rank"], *entry.get("shape", ())):
        if not isinstance(size, int) or not 0 <= size <= most:
            raise ArtifactError(
                f"{origin}: {RECORD_FILE} or config.json gives {layer} the size {str(size)[:40]}, and its dense layer "
                f"has at most {most:,}; compress the original again"
            )
