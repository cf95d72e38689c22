"""The files of a Hugging Face folder that hold its weights, as transformers chooses them; no other file is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowrank.artifacts import parse_json
from lowrank.artifacts.outside import is_file, named_in

SAFE, OLD = "model.safetensors", "pytorch_model.bin"
OLD_INDEX = f"{OLD}.index.json"


def is_weights(path: Path) -> bool:
    """Whether a file has the suffix of a file of tensors, whatever it holds: options, optimizers, adapters."""
    return path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") and is_file(path)


def is_foreign(config: Path) -> bool:
    """Whether a `config.json` is there that is of no model of transformers: it says something, but no model type."""
    try:
        content: Any = parse_json(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and bool(content) and not isinstance(content.get("model_type"), str)


def has_index(folder: Path) -> bool:
    """Whether a folder has an index of shards, right or wrong."""
    return any(is_file(folder / f"{name}.index.json") for name in (SAFE, OLD))


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a folder that holds a model; none if there are none.

    Safetensors come before torch files, and an index before one file, as in transformers. Shards without an index are
    all files that are called `model-...` or `pytorch_model-...`.
    """
    for name in (SAFE, OLD):
        if is_file(folder / f"{name}.index.json"):
            return _indexed(folder, f"{name}.index.json")
        if is_file(folder / name):
            return [folder / name]
        start, _, suffix = name.rpartition(".")
        shards = sorted(path for path in folder.glob(f"{start}-*.{suffix}") if is_file(path))
        if shards:
            return shards
    return sorted(path for path in folder.glob("*.safetensors") if is_file(path))


def _indexed(folder: Path, index: str) -> list[Path]:
    """What an index names in its own folder; none if it is no index, which its reader says."""
    try:
        content: Any = parse_json((folder / index).read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    paths = [named_in(folder, name) for name in names if isinstance(name, str)]
    return [path for path in paths if path is not None]
