"""Small sharded checkpoints, for what is streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from builders import shape_spectra_, tiny_config

from lowrank.pipeline import Execution, Settings

NO_DATA = Settings(calib="none")
STREAMED = Execution(stream=True)


def checkpoint(
    folder: Path,
    kind: str = "LlamaForCausalLM",
    dtype: torch.dtype = torch.bfloat16,
    shard: str = "40KB",
    **changes: Any,
) -> Path:
    """A model of random numbers with decaying spectra, in several shards."""
    import transformers

    kinds = {"LlamaForCausalLM": "llama", "BertModel": "bert", "GPT2LMHeadModel": "gpt2"}
    torch.manual_seed(0)
    model = getattr(transformers, kind)(tiny_config(kinds[kind], **changes))
    shape_spectra_(model).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def index_of(folder: Path) -> dict[str, str]:
    """Which file each tensor is in."""
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run that does not tell the time, or where it was made."""
    telling = ("report.json", "report.html", "README.md")
    names = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in telling]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names if not path.name.startswith(".")}
