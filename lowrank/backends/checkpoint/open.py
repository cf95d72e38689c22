"""From a folder or a URL to a CheckpointBackend: names and shapes are compared, no numbers are read."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.artifacts.files import RECORD_FILE
from lowrank.backends.base import Opening, already_compressed
from lowrank.backends.beside import with_pooling
from lowrank.backends.checkpoint.backend import CheckpointBackend
from lowrank.backends.checkpoint.location import Location
from lowrank.backends.checkpoint.shards import DTYPES, Shards, open_shards
from lowrank.backends.checkpoint.skeleton import prefix_of, skeleton, stored_names
from lowrank.backends.names import fit_names, no_place
from lowrank.backends.not_whole import part_in_folder
from lowrank.backends.torch import huggingface
from lowrank.backends.torch.describe import describe
from lowrank.backends.torch.inputs import name_of, of_transformers
from lowrank.core.weight import Skip, Weight
from lowrank.errors import UnsupportedModel

CONFIG_FILE = "config.json"


def open_checkpoint(url: str, opening: Opening | None = None) -> CheckpointBackend:
    """The backend for a Hugging Face checkpoint whose weights are read one by one.

    Args:
        url: a folder, or an address that fsspec knows.
        opening: must not say how the model is built, as its config does.

    Raises:
        UnsupportedModel: if it is no such checkpoint, or its tensors are not those that the config describes.
    """
    opening = opening or Opening()
    if opening.arch or opening.config or opening.lora:
        raise UnsupportedModel(
            f"{url} is streamed, and --arch, --config and --lora need the whole model in memory; allow it more with "
            "--memory, or merge the adapter first"
        )
    place = Location(url)
    there = place.names()
    if RECORD_FILE in there:
        raise already_compressed(f"{url} holds")
    part = part_in_folder(url, there)
    if part is not None:
        raise part.refused(url)
    if CONFIG_FILE not in there:
        raise UnsupportedModel(f"{url} holds no {CONFIG_FILE}, so it is no Hugging Face model; give the whole folder")
    shards = open_shards(place)
    folder, owner = _belongings(place, there)
    config = huggingface.read_config(folder / CONFIG_FILE)
    dtype = _dtype_of(shards)
    module = skeleton(url, config, dtype)
    fit = fit_names(module.state_dict(), shards.tensors, prefix_of(module))
    files = shards.files
    shards = shards.renamed(fit.names) if fit.is_changed else shards
    weights, skips, stored, aliases = _described(url, module, shards)
    source: dict[str, Any] = {
        "path": url,
        "kind": "checkpoint",
        "fingerprint": place.fingerprint([*files, CONFIG_FILE]),
    }
    if fit.is_changed:
        source["notes"] = [*fit.taken_off, *no_place(fit.left)]
    backend = CheckpointBackend(
        shards=shards,
        source=source,
        weights=weights,
        skips=skips,
        stored=stored,
        aliases=aliases,
        rebuild={"kind": "checkpoint", "class": type(module).__name__, "dtype": name_of(dtype)},
        extras=huggingface.belongings(folder),
        tokenizer=folder if huggingface.tokenizer_files(folder) else None,
        feeding=with_pooling(of_transformers(module), folder),
    )
    if owner is not None:
        # What was fetched lives as long as the backend does.
        weakref.finalize(backend, owner.cleanup)
    return backend


def _belongings(place: Location, there: list[str]) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    """The folder with the config and the tokenizer: the checkpoint's own, or a copy of what is far away."""
    if place.is_local:
        return Path(place.url), None
    owner = tempfile.TemporaryDirectory(prefix="lowrank-")
    folder = Path(owner.name)
    place.fetch([name for name in there if Path(name).suffix in {".json", ".txt", ".model", ".jinja", ".md"}], folder)
    return folder, owner


def _dtype_of(shards: Shards) -> torch.dtype:
    """What most numbers are stored in; a model whose numbers have 8 bits is built in bfloat16 around them."""
    counts: dict[torch.dtype, int] = {}
    for stored in shards.tensors.values():
        dtype = DTYPES[stored.dtype]
        if dtype.is_floating_point:
            counts[dtype] = counts.get(dtype, 0) + stored.params
    most = max(counts, key=lambda dtype: counts[dtype], default=torch.float32)
    return torch.bfloat16 if most.itemsize == 1 else most


def _described(
    url: str, module: nn.Module, shards: Shards
) -> tuple[tuple[Weight, ...], tuple[Skip, ...], dict[str, str], dict[str, str]]:
    """The weights that can be streamed, the skips, the stored name of each weight, and the ties."""
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    names = stored_names(shapes, shards.tensors, prefix_of(module))
    lacking = [name for name in shapes if name not in names and len(shapes[name]) > 1]
    if lacking:
        raise UnsupportedModel(
            f"{url}: the checkpoint has no tensor {lacking[0]} ({len(lacking)} are missing); it may store them under "
            "names that only transformers can convert: allow the whole model with --memory"
        )
    for name, stored in names.items():
        if shards.tensors[stored].shape != shapes[name]:
            raise UnsupportedModel(
                f"{url}: {stored} has the shape {shards.tensors[stored].shape}, but {CONFIG_FILE} says "
                f"{shapes[name]}; give the {CONFIG_FILE} that belongs to these weights"
            )
    weights, skips = describe(module, "it is streamed")
    usable: list[Weight] = []
    left: list[Skip] = list(skips)
    aliases: dict[str, str] = {}
    for weight in weights:
        reason = _why_not(weight, shards, names[weight.name])
        if reason:
            left.append(Skip(weight.name, weight.shape, reason))
            continue
        dtype = name_of(DTYPES[shards.tensors[names[weight.name]].dtype])
        usable.append(replace(weight, dtype=dtype))
        # The first layer holds the factors, as the first name holds the tensor.
        first = weight.layers[0].name
        aliases |= {layer.name: first for layer in weight.layers[1:]}
    known: Mapping[str, str] = {weight.name: names[weight.name] for weight in usable}
    return tuple(usable), tuple(left), dict(known), aliases


def _why_not(weight: Weight, shards: Shards, stored: str) -> str:
    if weight.stack > 1 or any(layer.kind not in ("linear", "lookup") for layer in weight.layers):
        return "only linear layers and tables are streamed; allow the whole model with --memory"
    tied = [layer.name for layer in weight.layers]
    twice = [name for name in tied[1:] if f"{name}.weight" in shards.tensors and f"{name}.weight" != stored]
    return f"it is tied to {twice[0]}, which the checkpoint stores once more" if twice else ""
