"""The trainable residual `s B A` beside each factored layer: put on a module, or folded into its factors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.hooks import first_input
from lowrank.backends.torch.inputs import call, mask_of, token_rows
from lowrank.backends.torch.layers import dense_layer, empty_replacement, fill_, has_bias, put, record_of
from lowrank.backends.torch.lora import residuals as residuals_of
from lowrank.backends.torch.module import ModuleBackend
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.directions import directions
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.pivoted import pivot
from lowrank.errors import HealingError
from lowrank.healing.optimizer import rms
from lowrank.nn import LowRankLinear, NarrowLinear, PivotedLinear

NAME = "default"
"""Of the adapter, as PEFT calls the first one."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A trainable residual beside the factored layers of a module."""

    module: nn.Module
    shapes: Mapping[str, tuple[int, int]]
    """(inputs, outputs) of each layer with a residual."""
    peft: Any
    """The `peft.PeftModel` around the module."""

    def residuals(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each layer `A` (inputs x rank) and `B` (rank x outputs), the scale included."""
        return residuals_of(self.module)


def adaptable(module: nn.Module, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every replaced layer that can have an adapter, by the name of what it is put on.

    Of a layer that only got narrower that is the smaller layer inside. Tables, convolutions and stacks have none.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for name in layers:
        layer = module.get_submodule(name)
        if isinstance(layer, NarrowLinear):
            name, layer = f"{name}.linear", layer.linear
        if isinstance(layer, nn.Linear):
            shapes[name] = (layer.in_features, layer.out_features)
    return shapes


def attach(module: nn.Module, shapes: Mapping[str, tuple[int, int]], rank: int, seed: int = 0) -> Any:
    """Put an adapter of PEFT on each layer, in place; it gives nothing yet, and `A` is drawn by the seed.

    Returns:
        The `peft.PeftModel` around the module.

    Raises:
        HealingError: if PEFT is not installed, or there is no layer to put one on.
    """
    if not shapes:
        raise HealingError("no layer of the compressed model can have an adapter: only replaced linear layers can")
    try:
        import peft
    except ImportError:
        raise HealingError("adapters need PEFT; pip install 'lowrank[lora]'") from None
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=_targets(module, list(shapes)), lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(module, config)


def _targets(module: nn.Module, names: list[str]) -> list[str] | str:
    """The layers by name, or as a pattern where a name is also the end of another layer's."""
    others = [name for name, _ in module.named_modules() if name not in names]
    clash = any(other.endswith(f".{name}") for other in others for name in names)
    return "|".join(map(re.escape, names)) if clash else names


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' matrices, by name."""
    return {name: p for name, p in module.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def smallest_sizes(module: nn.Module, shapes: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """The size that the optimizer takes each B to have at least: with it `B A` is a tenth of the weight beside it."""
    sizes: dict[str, float] = {}
    for name in shapes:
        layer: Any = module.get_submodule(name)
        a = layer.lora_A[NAME].weight.detach()
        weight = layer.get_base_layer().weight.detach()
        sizes[f"{name}.lora_B.{NAME}.weight"] = 0.1 * float(rms(weight) / (rms(a) * len(a) ** 0.5).clamp_min(1e-12))
    return sizes


def input_moments(
    module: nn.Module, backend: ModuleBackend, paths: Sequence[str], feeds: Sequence[Feed]
) -> dict[str, Gram]:
    """The second moment of what each layer reads in a module as it is."""
    signature = backend.signature
    assert isinstance(signature, Signature)
    grams: dict[str, Gram] = {}
    mask: Tensor | None = None
    handles: list[Any] = []
    for path in paths:

        def hook(layer: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            rows = token_rows(first_input(args, kwargs).detach().float().cpu(), mask)
            gram = Gram.of("input", rows.numpy())
            grams[path] = grams[path] + gram if path in grams else gram

        handles.append(module.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad():
            for feed in feeds:
                mask = mask_of(feed)
                call(signature, module, feed)
    finally:
        for handle in handles:
            handle.remove()
    return grams


def fold(
    small: ModuleBackend,
    dense: ModuleBackend,
    residuals: Mapping[str, tuple[np.ndarray, np.ndarray]],
    feeds: Sequence[Feed] | None,
) -> ModuleBackend:
    """The compressed model with residuals added to its factors.

    Args:
        small: the compressed model, without an adapter; its module is changed.
        dense: the original, for the layers' shapes.
        residuals: see `Adapter.residuals`.
        feeds: data in whose metric the factors are cut back to the ranks that they had; None lets the ranks grow,
            which is exact.
    """
    records = {record["layers"][0]: name for name, record in small.replaced.items()}
    weights = {weight.name: weight for weight in dense.weights}
    replaced = {name: dict(record) for name, record in small.replaced.items()}
    grams: dict[str, Gram] = {}
    if feeds is not None:
        factored = [p for p in residuals if isinstance(small.module.get_submodule(p), LowRankLinear | PivotedLinear)]
        grams = input_moments(small.module, small, factored, feeds)
    for path, (a, b) in residuals.items():
        layer: Any = small.module.get_submodule(path)
        if not isinstance(layer, LowRankLinear | PivotedLinear):
            with torch.no_grad():
                layer.weight += torch.from_numpy((a @ b).T).to(layer.weight)
            continue
        name = records[path]
        before, weight = small.replaced[name], weights[name]
        product = layer.weight.detach().double().cpu().numpy() + (a.astype(np.float64) @ b).T
        full = min(product.shape)
        if feeds is None and not isinstance(layer, PivotedLinear) and layer.rank + a.shape[1] < full:
            left, right = (part.weight.detach().double().cpu().numpy() for part in (layer.left, layer.right))
            factors = Factors(np.concatenate([left, b.T], 1), np.concatenate([right, a.T], 0))
        else:
            rank = layer.rank if feeds is not None else min(layer.rank + a.shape[1], full)
            factors = directions(product, grams.get(path), name=name).truncate(product, rank)
        bias = None if layer.bias is None else layer.bias.detach().double().cpu().numpy()
        replacement = Replacement(
            before["structure"],
            pivot(factors) if isinstance(layer, PivotedLinear) else factors,
            bias,
            *(np.array(before[key]) if key in before else None for key in ("rows", "cols")),
        )
        for each in before["layers"]:
            old, form, stored = dense_layer(dense.module, each, before["kind"], weight.view.stored)
            record = record_of(weight, replacement, has_bias(old, replacement))
            new = empty_replacement(old, record, stored, form)
            fill_(new, weight, replacement, old, stored)
            put(small.module, each, new)
            replaced[name] = record
    return replace(small, replaced=replaced)
