"""What lies beside a model and says what its inputs and outputs mean: config.json and its kin."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lowrank.artifacts import parse_json
from lowrank.backends.base import Backend

MOST_BYTES = 8 << 20


def beside(dense: Backend, name: str) -> dict[str, Any]:
    """The JSON object in a file of the model's folder, or of its tokenizer's; empty if there is none to be read."""
    for folder in _folders(dense):
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


def _folders(dense: Backend) -> list[Path]:
    folders: list[Path] = []
    for place in (dense.source.get("path"), dense.tokenizer):
        if isinstance(place, str | Path):
            path = Path(place)
            folder = path if path.is_dir() else path.parent
            # Graphs often lie in a folder `onnx` of the model's.
            folders += [folder, folder.parent] if folder.name == "onnx" else [folder]
    return folders
