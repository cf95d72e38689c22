"""Adapters that were made elsewhere with PEFT: merged into a model, or put beside a compressed one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lowrank.backends.torch.adapter_config import check_adapter_config
from lowrank.errors import UnsupportedModel, first_line

OTHERS = ("lora_magnitude", "lora_embedding", "modules_to_save")
"""In the names of what PEFT may save beside `A` and `B`."""


def merge(module: nn.Module, folder: Path) -> nn.Module:
    """A model with an adapter in its own weights, for good.

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
