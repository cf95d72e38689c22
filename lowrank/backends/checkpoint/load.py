"""A streamed result back as a module: layer by layer, the dense model never in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowrank.backends.checkpoint.location import Location
from lowrank.backends.checkpoint.shards import open_shards
from lowrank.backends.checkpoint.skeleton import prefix_of, skeleton, stored_names
from lowrank.backends.torch import huggingface
from lowrank.backends.torch.replace import put_layers
from lowrank.errors import ArtifactError


def load_checkpoint(folder: Path, record: Mapping[str, Any]) -> nn.Module:
    """The compressed model in a folder, in evaluation mode.

    Args:
        folder: with config.json and the shards.
        record: what `lowrank.json` in it says.

    Raises:
        ArtifactError: if the tensors are not those that the record tells of.
    """
    config, dtype = huggingface.as_saved(folder, record["rebuild"])
    module = skeleton(folder, config, dtype)
    aliases: Mapping[str, str] = record["aliases"]
    put_layers(module, record["replaced"], folder)
    _fill(module, folder)
    for layer, first in aliases.items():
        for side in ("left", "right"):
            getattr(module.get_submodule(layer), side).weight = getattr(module.get_submodule(first), side).weight
    tie: Any = getattr(module, "tie_weights", None)
    if tie is not None and not aliases:
        tie()
    empty = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if empty:
        raise ArtifactError(f"{folder} has no tensor {empty[0]} ({len(empty)} are missing); compress the model again")
    return module.eval()


def _fill(module: nn.Module, folder: Path) -> None:
    """Give every parameter and buffer that the folder has a tensor for that tensor, one by one."""
    shards = open_shards(Location(str(folder)))
    places: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, stored in stored_names(places, shards.tensors, prefix_of(module)).items():
        before, tensor = places[name], shards.tensor(stored)
        if tensor.shape != before.shape:
            raise ArtifactError(
                f"{folder}: {stored} has the shape {tuple(tensor.shape)}, and the model has room for "
                f"{tuple(before.shape)}; compress the model again"
            )
        owner, _, key = name.rpartition(".")
        parent = module.get_submodule(owner)
        if isinstance(before, nn.Parameter):
            parent._parameters[key] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        else:
            parent._buffers[key] = tensor
