"""The block of a config.json by which transformers knows a compressed model: `quantization_config`.

It says what `lowrank.json` says, under the key and with the `quant_method` that transformers looks for, so that
`from_pretrained` builds the factored model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank.artifacts.files import SCHEMA_MAJOR, SCHEMA_MINOR, atomic, parse_json

CONFIG_FILE = "config.json"
KEY, METHOD = "quantization_config", "lowrank"
RUN_ONLY = ("rows", "cols")
"""Of a record: how a run's weights were permuted, which no layer is built from."""


def is_ours(content: Any) -> bool:
    """Whether a config's content tells of a model that was compressed here."""
    block = content.get(KEY) if isinstance(content, dict) else None
    return isinstance(block, dict) and block.get("quant_method") == METHOD


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
    schema = f"lowrank.model/{SCHEMA_MAJOR}.{SCHEMA_MINOR}"
    replaced = {n: {k: v for k, v in each.items() if k not in RUN_ONLY} for n, each in record["replaced"].items()}
    block = {"rebuild": record["rebuild"], "replaced": replaced, "aliases": record["aliases"]}
    content[KEY] = {"quant_method": METHOD, "schema": schema, **block}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
