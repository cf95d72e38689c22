"""The only place that opens torch files. Pickled code does not run unless it is asked for."""

from __future__ import annotations

import logging
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.artifacts.outside import check_zip, is_plain, most_bytes
from lowrank.backends.quiet import no_logs
from lowrank.backends.torch.pt2_check import check_archive, check_records
from lowrank.errors import UnsupportedModel, first_line

# What torch says when a file is whole and asks for more than tensors.
REFUSED_BY_TORCH = ("Unsupported global", "Unsupported class", "Trying to call reduce", "Trying to instantiate")
NESTED_KEYS = ("state_dict", "model_state_dict", "model", "module", "ema")


def read_torch_file(path: Path, unsafe_pickle: bool) -> dict[str, Tensor] | nn.Module:
    """What a `.pt`, `.pth` or `.bin` file holds: a state dict, or (if allowed) a pickled module.

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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=not unsafe_pickle)  # noqa: TID251
    except Exception as error:
        if any(sign in str(error) for sign in REFUSED_BY_TORCH):
            raise UnsupportedModel(
                f"{path} holds pickled Python objects, which run code when they are read; save the model's state dict "
                "instead, or pass --unsafe-pickle if you trust where the file comes from"
            ) from None
        raise UnsupportedModel(
            f"{path} cannot be read as a torch file; it is cut short, damaged or of another kind: copy or save it again"
        ) from None
    if isinstance(content, nn.Module):
        return content
    return _state_dict(path, content)


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    for key in ("", *NESTED_KEYS):
        inner = content.get(key) if key and isinstance(content, Mapping) else content
        if isinstance(inner, nn.Module):
            inner = inner.state_dict()
        if isinstance(inner, Mapping):
            tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
            if tensors:
                return _plain(path, tensors)
    raise UnsupportedModel(
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
