"""Adapters that were made elsewhere with PEFT: merged into a model, or put beside a compressed one.

Before PEFT reads one, its adapter_config.json is checked: ranks that its tensors have, patterns that are matched in
time, and nothing beyond residuals of layers.
"""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lowrank.artifacts import parse_json
from lowrank.backends.torch.huggingface import open_safetensors
from lowrank.errors import UnsupportedModel, first_line

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
REFUSED = (
    *("layer_replication", "megatron_config", "alora_invocation_tokens", "arrow_config"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),
)
"""What makes another model of the one it is put on, or reads further files or code."""
PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save", "target_parameters")
QUANTIFIER = re.compile(r"(?<!\\)[*+{]")
OTHERS = ("lora_magnitude", "lora_embedding", "modules_to_save")
"""In the names of what PEFT may save beside `A` and `B`."""


def merge(module: nn.Module, folder: Path) -> nn.Module:
    """A model whose weights have an adapter added to them.

    Raises:
        UnsupportedModel: if the folder holds no adapter that fits.
    """
    model = with_adapter(module, folder)
    try:
        return model.merge_and_unload().eval()
    except Exception as error:
        raise UnsupportedModel(
            f"the adapter in {folder} cannot be merged: {first_line(error)}; merge it with PEFT first"
        ) from None


def with_adapter(module: nn.Module, folder: Path) -> Any:
    """A `peft.PeftModel` around a model, whose layers it takes the place of.

    Raises:
        UnsupportedModel: if PEFT is not installed, or the folder holds no adapter that fits.
    """
    check_adapter_config(folder)
    try:
        import peft
    except ImportError:
        raise UnsupportedModel("--lora needs PEFT; pip install 'lowrank[lora]'") from None
    try:
        with warnings.catch_warnings(record=True) as messages:
            warnings.simplefilter("always")
            model = peft.PeftModel.from_pretrained(module, str(folder))  # pyright: ignore[reportArgumentType]
    except Exception as error:
        raise UnsupportedModel(
            f"the adapter in {folder} does not fit the model: {first_line(error)}; give the model that it was "
            "trained on"
        ) from None
    missing = [str(w.message) for w in messages if "missing adapter keys" in str(w.message)]
    if missing:
        raise UnsupportedModel(f"the adapter in {folder} does not fit the model: {missing[0][:200]}")
    return model


def residuals(model: nn.Module) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Of each layer that PEFT's only adapter is put on, `A` (inputs x rank) and `B` (rank x outputs), scale included.

    Args:
        model: a `peft.PeftModel`, or the module that it has changed.

    Raises:
        UnsupportedModel: if the adapter holds anything else.
    """
    odd = [name for name, _ in model.named_parameters() if any(other in name for other in OTHERS)]
    if odd:
        raise UnsupportedModel(
            f"the adapter holds more than residuals of linear layers: {odd[0]}; merge it, without --keep-lora"
        )
    peft: Any = model
    root: nn.Module = peft.get_base_model() if hasattr(peft, "get_base_model") else model
    pairs: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    for path, module in root.named_modules():
        layer: Any = module
        for name in getattr(layer, "lora_A", {}):
            a, b = (part[name].weight.detach().float().cpu().numpy() for part in (layer.lora_A, layer.lora_B))
            pairs[path] = (a.T.copy(), (layer.scaling[name] * b).T.copy())
    return pairs


def check_adapter_config(folder: Path) -> None:
    """Check that a folder can be given to PEFT.

    Raises:
        UnsupportedModel: if it holds no adapter, or one that asks for more than residuals of layers.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UnsupportedModel(f"{folder} holds no {CONFIG_FILE}; give --lora the folder that PEFT saved")
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path} is not JSON ({first_line(error)}); copy it again") from None
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        kind = content.get("peft_type") if isinstance(content, dict) else None
        raise UnsupportedModel(f"{path} is of the type {kind!r}; only adapters of the type 'LORA' can be merged")
    for key in REFUSED:
        if content.get(key):
            raise UnsupportedModel(f"{path} asks for {key!r}, which is more than a residual; merge it with PEFT first")
    for pattern in _patterns(content):
        if not is_tame(pattern):
            raise UnsupportedModel(
                f"{path}: matching names with the pattern {pattern[:60]!r} may take for ever; name the layers instead"
            )
    _check_ranks(folder, content)


def _patterns(content: dict[str, Any]) -> list[str]:
    patterns: list[Any] = []
    for key in PATTERNS:
        value = content.get(key)
        patterns += value if isinstance(value, list) else [value]
    for key in ("rank_pattern", "alpha_pattern"):
        value = content.get(key)
        patterns += value if isinstance(value, dict) else []
    return [pattern for pattern in patterns if isinstance(pattern, str)]


def is_tame(pattern: str) -> bool:
    """Whether a regular expression is matched in time: few repetitions, none of a group, no references back.

    Example:
        >>> is_tame(r".*\\.(q|v)_proj"), is_tame("(a+)+b")
        (True, False)
    """
    repeated = re.search(r"\)\s*[*+{]", pattern) or re.search(r"\\\d|\(\?P?[=(]", pattern)
    return repeated is None and len(QUANTIFIER.findall(pattern)) <= 3 and len(pattern) <= 4096


def _check_ranks(folder: Path, content: dict[str, Any]) -> None:
    """PEFT takes the memory for layers of the config's ranks before it looks at the tensors."""
    path = folder / TENSOR_FILE
    pattern = content.get("rank_pattern")
    ranks = [content.get("r", 8), *(pattern.values() if isinstance(pattern, dict) else ())]
    if not all(isinstance(rank, int) and not isinstance(rank, bool) and rank > 0 for rank in ranks):
        raise UnsupportedModel(f"{folder / CONFIG_FILE}: a rank is no whole number above 0; copy it again")
    if not path.is_file():
        raise UnsupportedModel(
            f"there is no {path}; save the adapter with model.save_pretrained(folder), which writes safetensors"
        )
    shapes = open_safetensors(path)
    largest = max((shape[0] for name, shape in shapes.items() if "lora_A" in name and shape), default=0)
    largest = max(largest, *(shape[-1] for name, shape in shapes.items() if "lora_" in name and shape), 0)
    if max(ranks) > largest:
        raise UnsupportedModel(
            f"{folder / CONFIG_FILE} says rank {max(ranks):,}, but the largest in {path.name} is {largest:,}; give the "
            "two files that were saved together"
        )
    scale = content.get("lora_alpha", 8)
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise UnsupportedModel(f"{folder / CONFIG_FILE}: lora_alpha is {scale!r}, which is no number; copy it again")
