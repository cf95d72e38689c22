"""Models in their formats. `open_model` finds the backend for a path; nothing heavy is imported before."""

from __future__ import annotations

from pathlib import Path

from lowrank.backends.base import Backend, Opening
from lowrank.errors import UnsupportedModel

TORCH_FILES = {".pt", ".pth", ".bin", ".pt2", ".safetensors"}

__all__ = ["Backend", "Opening", "open_model"]


def open_model(model: object, opening: Opening | None = None) -> Backend:
    """The backend that reads a model.

    Args:
        model: a Hugging Face folder, a `.safetensors`, `.pt`, `.pth`, `.bin`, `.pt2` or `.onnx` file, or a live
            `nn.Module`.
        opening: how to build it, and what it may run.

    Raises:
        UnsupportedModel: if there is no such file, or it cannot be read; the message says what to try.
    """
    opening = opening or Opening()
    if not isinstance(model, str | Path):
        from lowrank.backends.torch import open_module

        return open_module(model, opening)
    path = Path(model).expanduser()
    try:
        found = bool(str(model)) and path.exists()
    except OSError:
        found = False
    if not found:
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

        return open_onnx(path.resolve(), opening)
    if path.is_file() and path.suffix not in TORCH_FILES:
        raise UnsupportedModel(
            f"{path}: {path.suffix or 'a file without a suffix'} is not a kind of model that can be read; give a "
            f"Hugging Face folder or one of {', '.join(sorted({*TORCH_FILES, '.onnx'}))}"
        )
    from lowrank.backends.torch import open_path

    backend = open_path(path.resolve(), opening)
    return backend.with_tokenizer(tokenizer) if tokenizer else backend
