"""The only place that opens torch files. Pickled code does not run unless it is asked for."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.backends.torch.archive import check_archive
from lowrank.errors import UnsupportedModel, first_line

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=not unsafe_pickle)  # noqa: TID251
    except Exception as error:
        if not unsafe_pickle and "weights_only" in str(error).lower() and _is_pickle(path):
            raise UnsupportedModel(
                f"{path} holds pickled Python objects, which run code when they are read; save the model's state dict "
                "instead, or pass --unsafe-pickle if you trust where the file comes from"
            ) from None
        raise UnsupportedModel(
            f"{path} cannot be read as a torch file ({first_line(error)}); it may be cut short or of another kind: "
            "copy or save it again"
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
                return tensors
    raise UnsupportedModel(
        f"{path} holds no tensors ({type(content).__name__}); save a state dict: torch.save(model.state_dict(), path)"
    )


def read_program(path: Path, unsafe_pickle: bool) -> torch.export.ExportedProgram:
    """A `torch.export` archive.

    Raises:
        UnsupportedModel: if it is damaged, is no such archive, or would run code and may not.
    """
    if not unsafe_pickle:
        check_archive(path)
    try:
        with warnings.catch_warnings(), _weights_only(not unsafe_pickle):
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:
        raise UnsupportedModel(
            f"{path} cannot be read as a torch.export archive ({first_line(error)}); it may be cut short, made by "
            "another torch, or hold pickled objects: save it again with torch.export.save (or pass --unsafe-pickle "
            "if you trust where it comes from)"
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
    except (OSError, zipfile.BadZipFile):
        return False


def _is_pickle(path: Path) -> bool:
    """Whether the file is whole enough to be a pickle, so that the advice to allow pickles makes sense."""
    if zipfile.is_zipfile(path):
        return True
    with path.open("rb") as stream:
        start = stream.read(2)
        stream.seek(-1, os.SEEK_END)
        return start[:1] == b"\x80" and len(start) == 2 and start[1] <= 5
