"""ModuleBackend: a live torch module. Walks it, reads its matrices, puts factors in their place, saves it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.artifacts.files import write_json
from lowrank.backends.torch.inputs import Signature
from lowrank.backends.torch.layers import (
    ancestors_of,
    put,
    reason_against,
    register_optional_layers,
    replacement_for,
    view_of,
)
from lowrank.backends.torch.tensors import as_matrix, save_state
from lowrank.core.factors import Factors
from lowrank.core.linalg import Matrix
from lowrank.core.match import roles
from lowrank.core.structures.base import Replacement
from lowrank.core.weight import Layer, Skip, Weight
from lowrank.errors import NonFiniteWeight

MODEL_FILE = "model.safetensors"
RECORD_FILE = "lowrank.json"


@dataclass(frozen=True, eq=False)
class ModuleBackend:
    """A torch module with what is needed to feed it, to copy it, and to build it again."""

    module: nn.Module
    source: Mapping[str, Any]
    signature: Signature | str
    """How to feed it, or why that is not known."""
    rebuild: Mapping[str, Any]
    """How `load` builds the dense module: `kind` and what that kind needs."""
    fresh: Callable[[], nn.Module] | None = None
    """A second module with the same weights; None copies this one."""
    tokenizer_folder: Path | None = None
    extras: tuple[Path, ...] = ()
    """Files and folders that belong to the model and are copied along when it is saved."""
    config_file: Path | None = None
    """The one of them that is the config, whatever it is called."""
    replaced: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What `rewrite` did, by weight name."""

    @cached_property
    def _described(self) -> tuple[tuple[Weight, ...], tuple[Skip, ...]]:
        return _describe(self.module)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every matrix that a layer of a known type applies."""
        return self._described[0]

    @property
    def skips(self) -> tuple[Skip, ...]:
        """Every other tensor of two or more dimensions."""
        return self._described[1]

    @property
    def params(self) -> int:
        """Numbers in the model, ties counted once."""
        return sum(p.numel() for p in self.module.parameters())

    def read(self, name: str) -> Matrix:
        """One weight as a float64 matrix."""
        weight = next(w for w in self.weights if w.name == name)
        return as_matrix(name, self.module.get_parameter(name), weight.view)

    def check_finite(self) -> None:
        """Look at every parameter that is not a weight: one NaN in an embedding spoils every output."""
        known = {weight.name for weight in self.weights}
        for name, parameter in self.module.named_parameters():
            if name not in known and parameter.is_floating_point() and not torch.isfinite(parameter).all():
                shape = " x ".join(map(str, parameter.shape))
                raise NonFiniteWeight(f"{name} ({shape}) holds NaN or infinite values; repair the checkpoint")

    def rewrite(self, replacements: Mapping[str, Replacement]) -> ModuleBackend:
        """A backend whose module has low-rank layers; a tie stays one pair of tensors."""
        module = self.fresh() if self.fresh else copy.deepcopy(self.module)
        by_name = {weight.name: weight for weight in self.weights}
        replaced: dict[str, dict[str, Any]] = {}
        for name, factors in replacements.items():
            stored = module.get_parameter(name)
            first = None
            for layer in by_name[name].layers:
                new = replacement_for(name, module.get_submodule(layer.name), factors, stored)
                if first is not None:
                    new.left.weight, new.right.weight = first.left.weight, first.right.weight
                first = first or new
                put(module, layer.name, new)
            replaced[name] = record_of(by_name[name], factors)
        return replace(self, module=module, fresh=None, replaced=replaced)

    def save(self, folder: Path) -> None:
        """Weights as safetensors, what was replaced as JSON, and the model's other files copied along."""
        for extra in self.extras:
            target = folder / ("config.json" if extra == self.config_file else extra.name)
            if extra.is_dir():
                shutil.copytree(extra, target, ignore=shutil.ignore_patterns(".*"))
            else:
                shutil.copyfile(extra, target)
        record: dict[str, Any] = {"rebuild": dict(self.rebuild), "replaced": self.replaced}
        if self.rebuild["kind"] == "program":
            from lowrank.backends.torch.program import save_program

            assert isinstance(self.signature, Signature)
            save_program(self.module, self.signature, folder)
        else:
            record["aliases"] = save_state(self.module.state_dict(keep_vars=True), folder / MODEL_FILE)
        write_json(folder / RECORD_FILE, "model", record)


def record_of(weight: Weight, factors: Factors) -> dict[str, Any]:
    """What `load` must know to put a replacement back in its place."""
    layers = [layer.name for layer in weight.layers]
    return {"structure": "two_factor", "layers": layers, "rank": factors.rank, "stored": weight.view.stored}


def _describe(module: nn.Module) -> tuple[tuple[Weight, ...], tuple[Skip, ...]]:
    register_optional_layers()
    owners: dict[int, list[tuple[str, str, Tensor, nn.Module]]] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        for key, parameter in child.named_parameters(recurse=False):
            if parameter.dim() >= 2:
                owners.setdefault(id(parameter), []).append((path, key, parameter, child))
    found: dict[str, Weight] = {}
    skips: list[Skip] = []
    for uses in owners.values():
        path, key, parameter, _ = uses[0]
        name = f"{path}.{key}" if path else key
        reason = _why_not(module, uses)
        if reason:
            skips.append(Skip(name, tuple(parameter.shape), reason))
            continue
        view = view_of(uses[0][3])
        assert view is not None
        rows, cols = view.shape(parameter.shape)
        layers = tuple(Layer(p, "linear") for p, *_ in uses)
        dtype = str(parameter.dtype).removeprefix("torch.")
        found[name] = Weight(name, rows, cols, dtype, "projection", layers, view)
    named = roles({name: w.shape for name, w in found.items()})
    weights = [Weight(w.name, w.rows, w.cols, w.dtype, named[w.name], w.layers, w.view) for w in found.values()]
    return tuple(weights), tuple(skips)


def _why_not(root: nn.Module, uses: list[tuple[str, str, Tensor, nn.Module]]) -> str:
    """Why a tensor with these uses stays as it is, or an empty string."""
    parameter = uses[0][2]
    if not parameter.is_floating_point():
        return f"its numbers are {str(parameter.dtype).removeprefix('torch.')}: compress before quantising"
    for path, key, _, owner in uses:
        reason = reason_against(owner, [root, *ancestors_of(root, path)] if path else [])
        if not reason and key != "weight":
            reason = f"a {type(owner).__name__} does not multiply by it"
        if reason:
            others = [p for p, *_ in uses if p != path]
            return reason + (f" (tied with {', '.join(others)})" if others else "")
    if len({view_of(owner) for *_, owner in uses}) > 1:
        return "tied between layers that store it differently"
    if not uses[0][0]:
        return "the model is this one layer, so there is no place to put another"
    return ""
