"""The only place that opens torch files. Pickled code does not run unless it is asked for."""

from __future__ import annotations

import logging
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.artifacts.outside import check_zip, is_plain, most_bytes
from lowrank.backends.not_whole import extracting
from lowrank.backends.quiet import no_logs
from lowrank.backends.torch.pickled_names import pickled_names
from lowrank.backends.torch.pt2_check import check_archive, check_records
from lowrank.backends.torch.trainer_file import TrainerFile, weights_in
from lowrank.errors import UnsupportedModel, first_line

# What torch says when a file is whole and asks for more than tensors.
REFUSED_BY_TORCH = (
    "Unsupported global",
    "Unsupported class",
    "Trying to call reduce",
    "Trying to instantiate",
    "Can only",
)
SHARDED = ("DTensor", "ShardedTensor", "DeviceMesh")
"""Classes of tensors of which each process has a piece."""
PLAIN = frozenset({"argparse", "pathlib", "datetime", "types", "typing", "uuid"})
"""Modules of the standard library whose objects are no more than options, paths and dates."""


class Inert:
    """Stands for an object of a trainer, whose class is not imported: it takes what it is given and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """An object that is nothing."""
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None: ...


def read_torch_file(path: Path, unsafe_pickle: bool, wanted: str | None = None) -> TrainerFile | nn.Module:
    """What a `.pt`, `.pth`, `.bin` or `.ckpt` file holds: weights, or (if allowed) a pickled module.

    Options, paths and scores that a trainer saved beside them are not built: something inert stands for each.

    Args:
        path: the file.
        unsafe_pickle: whether it may run code of its own.
        wanted: which of several mappings with weights; see `weights_in`.

    Raises:
        UnsupportedModel: if it is damaged, holds neither, or would run code and may not.
    """
    if path.stat().st_size == 0:
        raise UnsupportedModel(f"{path} is empty (0 bytes); copy or save it again")
    if _is_torchscript(path):
        raise UnsupportedModel(
            f"{path} is a TorchScript archive, which cannot be rewritten; save the model's state dict, or a "
            "torch.export archive (.pt2), instead"
        )
    try:
        if zipfile.is_zipfile(path):
            check_zip(path)
            check_records(torch._C.PyTorchFileReader(str(path)), most_bytes(path))
    except Exception as error:
        raise UnsupportedModel(f"{path} is no whole torch file ({first_line(error)}); copy or save it again") from None
    names = [] if unsafe_pickle else pickled_names(path)
    inert: Any = [(stand_in, name) for name in names if (stand_in := _stand_in(name)) is not None]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(inert):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=not unsafe_pickle)  # noqa: TID251
    except Exception as error:
        if any(sign in str(error) for sign in REFUSED_BY_TORCH):
            raise _pickled(path, names) from None
        raise UnsupportedModel(
            f"{path} cannot be read as a torch file; it is cut short, damaged or of another kind: copy or save it again"
        ) from None
    if isinstance(content, nn.Module):
        return content
    found = weights_in(content, wanted) if isinstance(content, Mapping) else None
    if found is None or (inert and not any(tensor.dim() for tensor in found.weights.values())):
        if inert:
            raise _pickled(path, names)
        raise UnsupportedModel(_without_weights(path, content))
    return replace(found, weights=_plain(path, dict(found.weights)))


def _stand_in(name: str) -> Callable[..., Any] | None:
    """What stands for a class of a trainer's or its user's, of plain options, or numpy's; torch judges its own.

    There is nothing for functions and for classes of the standard library that do things: those are refused.
    """
    root, last = name.partition(".")[0], name.rpartition(".")[2]
    if name == "collections.defaultdict":
        return _mapping
    others = root not in sys.stdlib_module_names and root != "torch"
    types = root == "builtins" and last in ("int", "float", "str", "bool", "list", "dict", "tuple")
    return Inert if types or root == "numpy" or ((others or root in PLAIN) and last[:1].isupper()) else None


def _mapping(*_: Any) -> dict[Any, Any]:
    return {}


def _pickled(path: Path, names: list[str]) -> UnsupportedModel:
    """The error of a file that would run code; of Lightning and FSDP with what they are."""
    if any(name.rpartition(".")[2] in SHARDED for name in names):
        return UnsupportedModel(
            f"{path} is one process's shard of a model (FSDP or tensor parallel); save the whole state dict with "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict and full_state_dict=True"
        )
    instead = "save the model's state dict instead"
    if path.suffix == ".ckpt":
        instead = f"it is a checkpoint of Lightning: save its weights alone with {extracting(path)} in its folder"
    return UnsupportedModel(
        f"{path} holds pickled Python objects, which run code when they are read; {instead}, or pass --unsafe-pickle "
        "if you trust where the file comes from"
    )


def _without_weights(path: Path, content: Any) -> str:
    if path.name.endswith("_optim_states.pt") or (isinstance(content, Mapping) and "param_groups" in content):
        return f"{path} holds the state of an optimizer, and no model; give the file with the model's weights"
    return (
        f"{path} holds no tensors ({type(content).__name__}); save a state dict: torch.save(model.state_dict(), path)"
    )


def _plain(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        kind = "quantised" if tensor.is_quantized else "data-free" if tensor.is_meta else ""
        kind = kind or ("" if tensor.layout is torch.strided else "sparse")
        if kind or name == "__metadata__":
            what = f"a {kind} tensor, {name!r}" if kind else f"a tensor called {name!r}, which safetensors cannot hold"
            raise UnsupportedModel(f"{path} holds {what}; save the model with plain tensors and other names")
        if not is_plain(name):
            raise UnsupportedModel(f"{path} holds a tensor called {name[:60]!r}, which is no name; rename it")
    # A tensor of one number, repeated, can have any shape.
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > most_bytes(path):
        raise UnsupportedModel(
            f"{path} holds tensors that would take {claimed:,} bytes, too many for its size; save them with "
            "tensor.clone(), or look at where the file comes from"
        )
    return tensors


def read_program(path: Path, unsafe_pickle: bool) -> torch.export.ExportedProgram:
    """A `torch.export` archive.

    Raises:
        UnsupportedModel: if it is damaged, is no such archive, or would run code and may not.
    """
    if not unsafe_pickle:
        check_archive(path)
    try:
        with warnings.catch_warnings(), _weights_only(not unsafe_pickle), no_logs(logging.CRITICAL):
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:
        raise UnsupportedModel(
            f"{path} cannot be read as a torch.export archive ({first_line(error)}); it is damaged, was made by "
            "another torch, or holds more than tensors: save it again with torch.export.save"
        ) from None


@contextmanager
def _weights_only(force: bool) -> Iterator[None]:
    """torch.export.load falls back to full unpickling by itself; torch's own switch stops that."""
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    if force:
        os.environ[switch] = "1"
    try:
        yield
    finally:
        if force:
            os.environ.pop(switch)
            if before is not None:
                os.environ[switch] = before


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name and name.endswith(".py") for name in archive.namelist())
    except Exception:  # a damaged archive is some other kind of file, which its reader will say
        return False
