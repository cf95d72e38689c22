"""The block of a config.json by which transformers knows a compressed model: `quantization_config`.

It says what `lowrank.json` says, under the key that transformers looks for, so that `from_pretrained` builds the
factored model. A method that transformers does not know it skips with a warning, and then draws the layers at random.
So the block names one that it knows, with a setting that this one refuses with a sentence that tells what to do; with
lowrank imported the block is recognised before that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank.artifacts.files import SCHEMA_MAJOR, SCHEMA_MINOR, atomic, parse_json

CONFIG_FILE = "config.json"
KEY, METHOD = "quantization_config", "lowrank"
SCHEMA = "lowrank.model"
REFUSING = "eetq"
"""The method of transformers that refuses the block: it shows the `weights` that it does not support."""
ADVICE = (
    "low-rank factors, which need the package lowrank: `pip install lowrank`, "
    "then `import lowrank` before from_pretrained"
)
REFUSED = {"quant_method": REFUSING, "weights": ADVICE}
"""What a block begins with."""
RUN_ONLY = ("rows", "cols")
"""Of a record: how a run's weights were permuted, which no layer is built from."""


def is_ours(content: Any) -> bool:
    """Whether a config's content tells of a model that was compressed here."""
    block = content.get(KEY) if isinstance(content, dict) else None
    return isinstance(block, dict) and is_block(block)


def is_block(block: Mapping[str, Any]) -> bool:
    """Whether a block is one of a model that was compressed here, also as versions before 0.3 wrote it."""
    method = block.get("quant_method")
    return method == METHOD or (method == REFUSING and str(block.get("schema")).startswith(f"{SCHEMA}/"))


def read_block(folder: Path) -> dict[str, Any] | None:
    """The record in the config.json of a folder; None if there is none."""
    try:
        content = parse_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content[KEY] if is_ours(content) else None


def write_block(folder: Path, record: Mapping[str, Any]) -> None:
    """Tell transformers, in the config.json of a folder, of what was replaced, and of the class and type it is in.

    A folder without one, of a model that is none of transformers, stays as it is.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return
    content: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
    content["architectures"] = [record["rebuild"]["class"]]
    content["torch_dtype" if "torch_dtype" in content else "dtype"] = record["rebuild"]["dtype"]
    schema = f"{SCHEMA}/{SCHEMA_MAJOR}.{SCHEMA_MINOR}"
    replaced = {n: {k: v for k, v in each.items() if k not in RUN_ONLY} for n, each in record["replaced"].items()}
    block = {"rebuild": record["rebuild"], "replaced": replaced, "aliases": record["aliases"]}
    content[KEY] = {**REFUSED, "schema": schema, **block}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
