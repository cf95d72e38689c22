"""A finished model of torch read back: the replacements in it, and the dense model with their products in it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowrank.artifacts.files import RECORD_FILE, read_json
from lowrank.backends.base import Opening
from lowrank.backends.beside import with_pooling
from lowrank.backends.torch import huggingface, inputs
from lowrank.backends.torch.arch import build_arch
from lowrank.backends.torch.layers import register_optional_layers
from lowrank.backends.torch.load import fill, read_state
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.normalize import normalize_
from lowrank.backends.torch.open import TorchBackend
from lowrank.backends.torch.pickles import read_program
from lowrank.backends.torch.program import PREFIX, PROGRAM_FILE, unflatten
from lowrank.backends.torch.state_dict import StateDictBackend
from lowrank.backends.torch.tensors import MODEL_FILE
from lowrank.backends.torch.untrained import judged_by_trained
from lowrank.core.analysis import Analysis
from lowrank.core.selection.remaining import dense_of
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.attention import picks_of, spread_of
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.truncation.pivoted import Pivoted
from lowrank.core.truncation.spatial import SpatialFactors
from lowrank.core.weight import Weight
from lowrank.errors import UnsupportedModel, misfit


def read_finished(
    folder: Path, analysis: Analysis, opening: Opening, original: ModuleBackend | None
) -> tuple[TorchBackend, dict[str, Replacement]]:
    """The dense model that a saved one stands for, and what was put in the places of its weights.

    Args:
        folder: where the saved model is.
        analysis: of the original.
        opening: how to build the dense module if the folder does not say.
        original: the original, if it is there; a module that takes code is built from it.

    Raises:
        ArtifactError: if the folder holds no such model.
        UnsupportedModel: if it cannot be built without the original.
    """
    record = read_json(folder / RECORD_FILE, "model")
    with misfit(f"{folder / RECORD_FILE} does not describe the model beside it"):
        return _read(folder, record, analysis, opening, original)


def _read(
    folder: Path, record: Mapping[str, Any], analysis: Analysis, opening: Opening, original: ModuleBackend | None
) -> tuple[TorchBackend, dict[str, Replacement]]:
    rebuild: Mapping[str, Any] = record["rebuild"]
    kind, source = rebuild["kind"], dict(analysis.source)
    aliases = dict(record.get("aliases", {}))
    if kind == "checkpoint":
        raise UnsupportedModel(
            f"{folder} is of a model that was streamed, weight by weight; compress it with the smaller budget, which "
            "takes the analysis that is there"
        )
    if kind == "program":
        state: Mapping[str, Tensor] = unflatten(read_program(folder / PROGRAM_FILE, unsafe_pickle=False)).state_dict()
    else:
        state = read_state(folder / MODEL_FILE)
    weights = {r.weight.name: r.weight for r in analysis.weights}
    reader = _Reader({**state, **{alias: state[stored] for alias, stored in aliases.items()}}, analysis)
    replacements = {name: reader.replacement(weights[name], entry) for name, entry in record["replaced"].items()}
    tensors, aliases = _without(
        state, aliases, [name for entry in record["replaced"].values() for name in entry["layers"]]
    )
    for name, replacement in replacements.items():
        dense_tensors, tied = _dense(weights[name], replacement, record["replaced"][name], reader)
        tensors |= dense_tensors
        aliases |= tied
    if kind == "state_dict":
        return StateDictBackend({**tensors, **{a: tensors[k] for a, k in aliases.items()}}, source), replacements
    if kind == "program":
        if original is None:
            raise UnsupportedModel(
                f"{folder} is of an exported program, which cannot be taken apart without the original; put "
                f"{source.get('path')} back, or compress again"
            )
        return _of_program(original, tensors), replacements
    if kind == "huggingface":
        config, dtype = huggingface.as_saved(folder, rebuild)
        module = _filled(huggingface.build_dense(config, dtype), tensors, aliases, folder)
        return _of_transformers(module, source, rebuild, folder), replacements
    dense = copy.deepcopy(original.module) if original is not None else _build(folder, rebuild, opening)
    module = _filled(dense, tensors, aliases, folder)
    if original is not None:
        return replace(original, module=module.eval(), fresh=None), replacements
    return ModuleBackend(module.eval(), source, inputs.of_module(module), dict(rebuild)), replacements


def _of_program(original: ModuleBackend, tensors: Mapping[str, Tensor]) -> ModuleBackend:
    """The original program with other numbers; it cannot be copied, but be made again."""

    def make() -> nn.Module:
        assert original.fresh is not None
        module = original.fresh()
        module.load_state_dict({name.removeprefix(PREFIX): t for name, t in tensors.items()}, strict=False)
        return module

    return replace(original, module=make(), fresh=make)


def _without(
    state: Mapping[str, Tensor], aliases: Mapping[str, str], layers: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of all other layers, and the biases of these."""
    own = tuple(f"{layer}." for layer in layers)
    biases = {f"{layer}.bias" for layer in layers}

    def stays(name: str) -> bool:
        return name in biases or not name.startswith(own)

    tensors = {name: tensor for name, tensor in state.items() if stays(name)}
    return tensors, {alias: name for alias, name in aliases.items() if stays(alias) and stays(name)}


def _filled(dense: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str], folder: Path) -> nn.Module:
    """The dense module with these numbers; a bias that was dropped, in a layer that had one, is zero."""
    register_optional_layers()
    wanted = normalize_(dense).state_dict()
    named = {name: tensor for name, tensor in tensors.items() if name in wanted or not name.endswith(".bias")}
    lost = {
        name: torch.zeros_like(t)
        for name, t in wanted.items()
        if name.endswith(".bias") and name not in {**named, **aliases}
    }
    return fill(dense, {**named, **lost}, {}, aliases, folder)


def _of_transformers(
    module: nn.Module, source: Mapping[str, Any], rebuild: Mapping[str, Any], folder: Path
) -> ModuleBackend:
    return ModuleBackend(
        module=module.eval(),
        source=source,
        signature=judged_by_trained(
            with_pooling(inputs.of_running(module), folder), module, rebuild.get("untrained", ())
        ),
        rebuild=dict(rebuild),
        tokenizer=folder if huggingface.tokenizer_files(folder) else None,
        extras=tuple(path for path in huggingface.belongings(folder) if path.name != RECORD_FILE),
    )


def _build(folder: Path, rebuild: Mapping[str, Any], opening: Opening) -> nn.Module:
    """The dense module of a model that is built by code."""
    if opening.arch is None:
        raise UnsupportedModel(
            f"{folder}: the original is not there, and building its module takes code; say with --arch "
            f"package.module:factory what builds it ({rebuild.get('arch') or rebuild.get('class')})"
        )
    return build_arch(opening.arch)


class _Reader:
    """Replacements from the tensors that hold them: the inverse of `layers.fill_`."""

    def __init__(self, state: Mapping[str, Tensor], analysis: Analysis) -> None:
        self.state, self.analysis = state, analysis
        self._arrays: dict[tuple[int, tuple[int, ...]], NDArray[np.float64]] = {}

    def read(self, name: str) -> NDArray[np.float64]:
        """A tensor in float64; one that several layers share is one array."""
        tensor = self.state[name]
        key = (tensor.data_ptr(), tuple(tensor.shape))
        return self._arrays.setdefault(key, tensor.detach().cpu().double().numpy())

    def like(self, layer: str) -> torch.dtype:
        """The type in which a layer's factors are stored."""
        own = f"{layer}."
        return next(t.dtype for name, t in self.state.items() if name.startswith(own) and t.is_floating_point())

    def replacement(self, weight: Weight, entry: Mapping[str, Any]) -> Replacement:
        """The replacement in a weight's place."""
        layer = entry["layers"][0]
        structure, rank = str(entry["structure"]), int(entry["rank"])
        structure_named(structure)  # Refuses what there is not.
        rows, cols = (np.array(entry[key], np.int64) if key in entry else None for key in ("rows", "cols"))
        factors: Factors | Pivoted | Narrow
        if "shape" in entry:
            factors = self._narrow(weight, layer, structure, rank, entry)
        elif entry["kind"] == "experts":
            left, right = self.read(f"{layer}.left"), self.read(f"{layer}.right")
            turned = weight.view.stored == "stack cols rows"
            factors = _pair_of(structure, *((right.swapaxes(1, 2), left.swapaxes(1, 2)) if turned else (left, right)))
        else:
            left, right = self.read(f"{layer}.left.weight"), self.read(f"{layer}.right.weight")
            factors = self._factors(weight, entry, layer, rank, left, right)
        return Replacement(structure, factors, self._bias(layer, entry), rows, cols)

    def _factors(
        self,
        weight: Weight,
        entry: Mapping[str, Any],
        layer: str,
        rank: int,
        left: NDArray[np.float64],
        right: NDArray[np.float64],
    ) -> Factors | Pivoted:
        if "ordered" in entry:
            order = self.read(f"{layer}.order").astype(np.int64) if entry["ordered"] else None
            heads, last = int(entry.get("heads", 1)), bool(entry.get("last", False))
            return Pivoted(left, right, order, entry.get("side", "output"), heads, last)
        if structure_named(entry["structure"]).factors is SpatialFactors:
            # From (outputs, rank, kernel rows, 1) to (outputs kernel rows) x rank.
            return SpatialFactors(left[..., 0].swapaxes(1, 2).reshape(-1, rank), right.reshape(rank, -1))
        if entry["kind"] == "conv":
            stack = (weight.stack,) if weight.stack > 1 else ()
            return _pair_of(entry["structure"], left.reshape(*stack, -1, rank), right.reshape(*stack, rank, -1))
        return _pair_of(entry["structure"], *((right.T, left.T) if weight.is_table else (left, right)))

    def _narrow(self, weight: Weight, layer: str, structure: str, rank: int, entry: Mapping[str, Any]) -> Narrow:
        padded = bool(entry.get("spread") or entry.get("picks"))
        matrix = self.read(f"{layer}.linear.weight" if padded else f"{layer}.weight")
        if tuple(matrix.shape) != tuple(entry["shape"]):
            raise ValueError(f"{layer} has the shape {tuple(matrix.shape)}")
        if "attention" in entry:
            count = int(entry["attention"]["count"])
            if entry["attention"]["side"] == "outputs":
                return Narrow(matrix, spread_of(count, rank, weight.rows // count), None, True, rank)
            return Narrow(matrix, None, picks_of(count, rank, weight.cols // count), True, rank)
        outputs = picks = None
        if padded:
            if entry["spread"]:
                spread = self.read(f"{layer}.spread").astype(np.int64)
                outputs = np.where(spread >= len(matrix), -1, spread)
            if entry["picks"]:
                picks = self.read(f"{layer}.picks").astype(np.int64)
            return Narrow(matrix, outputs, picks, True, rank)
        return self._of_neurons(weight, matrix, structure, rank)

    def _of_neurons(self, weight: Weight, matrix: NDArray[np.float64], structure: str, rank: int) -> Narrow:
        """A layer whose neighbours know that it is narrower: which neurons it has the analysis tells."""
        coupling = next(
            b for b in self.analysis.couplings if b.structure == structure and weight.name in b.group.weights
        )
        assert coupling.order is not None
        neurons = np.sort(coupling.order[:rank])
        if weight.name == coupling.group.weights[-1]:
            return Narrow(matrix, inputs=neurons, rank=rank)
        spread = np.full(weight.rows, -1, np.int64)
        spread[neurons] = np.arange(len(neurons))
        return Narrow(matrix, outputs=spread, rank=rank)

    def _bias(self, layer: str, entry: Mapping[str, Any]) -> NDArray[np.float64] | None:
        """The layer's bias where it is not the dense layer's: in another order, or narrower; empty if it was
        dropped."""
        if not entry["bias"]:
            return np.zeros(0) if structure_named(entry["structure"]).drops_bias else None
        if "shape" not in entry and "rows" not in entry:
            return None
        inner = f"{layer}.linear.bias"
        return self.read(inner if inner in self.state else f"{layer}.bias")


def _pair_of(structure: str, left: NDArray[np.float64], right: NDArray[np.float64]) -> Factors:
    """Two factors of the class that the structure has."""
    kind = structure_named(structure).factors
    assert issubclass(kind, Factors)
    return kind(left, right)


def _dense(
    weight: Weight, replacement: Replacement, entry: Mapping[str, Any], reader: _Reader
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a weight's dense layers, and those that are others' under a second name."""
    stored = np.ascontiguousarray(weight.view.stored_from(dense_of(replacement, weight)))
    layers = entry["layers"]
    like = reader.like(layers[0])
    keys = [layer if entry["kind"] == "experts" else f"{layer}.weight" for layer in layers]
    tensors = {keys[0]: torch.from_numpy(stored).to(like)}
    bias = replacement.dense_bias(weight)
    if bias is not None:
        placed = bias if replacement.rows is None else bias[np.argsort(replacement.rows)]
        tensors[f"{layers[0]}.bias"] = torch.from_numpy(np.array(placed)).to(like)
    return tensors, {key: keys[0] for key in keys[1:] if key != keys[0]}
