"""Models in their formats. `open_model` finds the backend for a path; nothing heavy is imported before."""

from __future__ import annotations

from pathlib import Path

from lowrank.backends.base import Backend, Opening
from lowrank.backends.checkpoint.location import is_url
from lowrank.errors import UnsupportedModel

IN_MEMORY = 16
"""Bytes that each number of a model takes before all is done: two models, a graph and a session, in float32."""
TORCH_FILES = {".pt", ".pth", ".bin", ".ckpt", ".pt2", ".safetensors"}

__all__ = ["Backend", "Opening", "is_streamed", "open_model"]


def open_model(
    model: object, opening: Opening | None = None, memory: int | None = None, streamed: bool | None = None
) -> Backend:
    """The backend that reads a model.

    Args:
        model: a Hugging Face folder, a `.safetensors`, `.pt`, `.pth`, `.bin`, `.ckpt`, `.pt2` or `.onnx` file, or a
            live `nn.Module`; or the address of a folder that fsspec knows (`s3://bucket/model`), which is streamed.
        opening: how to build it, and what it may run.
        memory: bytes that it may take; a Hugging Face folder that takes more is streamed. None for what there is.
        streamed: whether it is streamed; None for where it takes more memory than it may.

    Raises:
        UnsupportedModel: if there is no such file, or it cannot be read; the message says what to try.
    """
    opening = opening or Opening()
    if not isinstance(model, str | Path):
        from lowrank.backends.torch import open_module

        return open_module(model, opening)
    if is_url(model):
        return _open_checkpoint(str(model), opening)
    path = Path(model).expanduser()
    try:
        there = bool(str(model)) and path.exists()
    except OSError:
        there = False
    if not there:
        raise UnsupportedModel(f"there is no {path}; give a Hugging Face folder or a model file on this machine")
    tokenizer = Path(opening.tokenizer).expanduser() if opening.tokenizer else None
    if tokenizer is not None and not tokenizer.exists():
        raise UnsupportedModel(f"there is no {tokenizer}; give a tokenizer.json, or a folder with a tokenizer")
    if path.suffix == ".onnx":
        if path.is_dir():
            raise UnsupportedModel(f"{path} is a folder; give the .onnx file itself")
        if opening.lora is not None:
            raise UnsupportedModel(f"{path}: an adapter cannot be merged into an ONNX graph; merge it before exporting")
        from lowrank.backends.onnx import open_onnx

        return open_onnx(_located(path), opening)
    if path.is_file() and path.suffix not in TORCH_FILES:
        raise UnsupportedModel(
            f"{path}: {path.suffix or 'a file without a suffix'} is not a kind of model that can be read; give a "
            f"Hugging Face folder or one of {', '.join(sorted({*TORCH_FILES, '.onnx'}))}"
        )
    if path.is_dir() and (_is_large(path, memory) if streamed is None else streamed):
        return _open_checkpoint(str(path.resolve()), opening)
    if streamed:
        raise UnsupportedModel(f"{path} is no Hugging Face folder, and only those can be streamed; give one")
    from lowrank.backends.torch import open_path

    backend = open_path(_located(path), opening)
    return backend.with_tokenizer(tokenizer) if tokenizer else backend


def is_streamed(backend: Backend) -> bool:
    """Whether a model's weights are read one by one, as the whole of it is larger than the memory that it may take."""
    return backend.source["kind"] == "checkpoint"


def _open_checkpoint(url: str, opening: Opening) -> Backend:
    from lowrank.backends.checkpoint.open import open_checkpoint

    return open_checkpoint(url, opening)


def _is_large(folder: Path, memory: int | None) -> bool:
    """Whether a folder's model takes more memory than it may."""
    from lowrank.backends.weight_files import is_foreign

    shards = list(folder.glob("*.safetensors"))
    if not shards or not (folder / "config.json").is_file() or is_foreign(folder / "config.json"):
        return False
    from lowrank.backends.checkpoint.location import Location
    from lowrank.backends.checkpoint.shards import open_shards
    from lowrank.backends.memory import available_memory

    allowed = available_memory() if memory is None else memory
    # The smallest numbers have eight bits: most folders need not be looked into.
    if IN_MEMORY * sum(path.stat().st_size for path in shards) <= allowed:
        return False
    params = sum(stored.params for stored in open_shards(Location(str(folder))).tensors.values())
    return IN_MEMORY * params > allowed


def _located(path: Path) -> Path:
    """An absolute path. A file that is a link keeps its name and its neighbours: in a Hugging Face cache all are."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name
