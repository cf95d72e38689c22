"""What lies beside a model and says what its inputs and outputs mean: config.json and its kin."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from lowrank.artifacts import parse_json
from lowrank.backends.base import Backend
from lowrank.backends.inputs import Pooling, Signature

MOST_BYTES = 8 << 20
POOLINGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


def read_beside(places: Iterable[object], name: str) -> dict[str, Any]:
    """The JSON object in a file that lies beside one of several files, or in one of several folders; empty if there is
    none to be read."""
    for folder in _folders(places):
        path = folder / name
        try:
            if path.is_file() and path.stat().st_size <= MOST_BYTES:
                content = parse_json(path.read_bytes())
                if isinstance(content, dict):
                    return cast("dict[str, Any]", content)
        except (OSError, ValueError):
            # The model runs without what such a file says.
            continue
    return {}


def beside(dense: Backend, name: str) -> dict[str, Any]:
    """The JSON object in a file of the model's folder, or of its tokenizer's; empty if there is none to be read."""
    return read_beside((dense.source.get("path"), dense.tokenizer), name)


def _folders(places: Iterable[object]) -> list[Path]:
    folders: list[Path] = []
    for place in places:
        if isinstance(place, str | Path):
            path = Path(place)
            folder = path if path.is_dir() else path.parent
            # Graphs often lie in a folder `onnx` of the model's.
            folders += [folder, folder.parent] if folder.name == "onnx" else [folder]
    return folders


def with_pooling(signature: Signature | str, *places: Path | None) -> Signature | str:
    """The signature of a model with how its hidden states are pooled, where a file of sentence-transformers beside it
    says that they are."""
    entry = read_beside(places, "1_Pooling/config.json")
    if isinstance(signature, str) or not entry:
        return signature
    named = entry.get("pooling_mode")
    chosen: list[Pooling] = [mode for key, mode in POOLINGS.items() if entry.get(key) is True or named == mode]
    how: Pooling = "mean" if len(chosen) != 1 else chosen[0]
    return signature.pooled_by(how)
