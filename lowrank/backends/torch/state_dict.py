"""StateDictBackend: tensors by name, when nothing says which model they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from lowrank.artifacts.files import RECORD_FILE, write_json
from lowrank.backends.inputs import Signature
from lowrank.backends.reparametrized import why_left
from lowrank.backends.torch.inputs import name_of
from lowrank.backends.torch.layers import record_of
from lowrank.backends.torch.tensors import MODEL_FILE, as_matrix, bytes_of, factor_tensors, save_state, storage_key
from lowrank.backends.unrun import Unrun
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.match import looks_like_embedding, role_of, stem
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.weight import Layer, Skip, View, Weight

UNRUN = "a plain state dict does not say how its tensors are applied"


@dataclass(frozen=True, eq=False)
class StateDictBackend(Unrun):
    """A plain state dict. It can be analysed and factored by name; it cannot be run."""

    tensors: Mapping[str, Tensor]
    source: Mapping[str, Any]
    replaced: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    signature: Signature | str = field(default=UNRUN, init=False)

    @property
    def refusal(self) -> str:
        """Why it cannot be run, and what to try."""
        return (
            f"{self.signature}; say with --arch package.module:factory or --config config.json how the model is built"
        )

    @cached_property
    def _described(self) -> tuple[tuple[Weight, ...], tuple[Skip, ...]]:
        names: dict[tuple[Any, ...], list[str]] = {}
        for name, tensor in self.tensors.items():
            if tensor.dim() >= 2:
                names.setdefault(storage_key(tensor) if tensor.numel() else (name,), []).append(name)
        weights: list[Weight] = []
        skips: list[Skip] = []
        for tied in names.values():
            name, tensor = tied[0], self.tensors[tied[0]]
            reason = _why_not(tied, tensor) or why_left(name, self.tensors) or _clash(tied, self.tensors)
            if reason:
                skips.append(Skip(name, tuple(tensor.shape), reason))
            else:
                layers = tuple(Layer(stem(n), "linear") for n in tied)
                rows, cols = tensor.shape
                weights.append(Weight(name, rows, cols, name_of(tensor.dtype), "projection", layers))
        named = role_of(weights)
        return tuple(replace(w, role=named[w.name]) for w in weights), tuple(skips)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every floating two-dimensional tensor whose name is not that of an embedding."""
        return self._described[0]

    @property
    def skips(self) -> tuple[Skip, ...]:
        """Every other tensor of two or more dimensions."""
        return self._described[1]

    @property
    def params(self) -> int:
        """Numbers in all floating tensors, ties counted once."""
        unique = {storage_key(t): t.numel() for t in self.tensors.values() if t.is_floating_point() and t.numel()}
        return sum(unique.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, ties counted once."""
        return bytes_of(self.tensors)

    @property
    def tokenizer(self) -> None:
        """None: a state dict comes without a tokenizer."""
        return None

    def read(self, name: str) -> Matrix:
        """One tensor as a float64 matrix."""
        return as_matrix(name, self.tensors[name], View())

    def rewrite(self, replacements: Mapping[str, Replacement]) -> StateDictBackend:
        """The state dict with `<name>.left.weight` and `<name>.right.weight` in place of `<name>.weight`.

        Pivoted factors have their `<name>.order` too.
        """
        by_name = {weight.name: weight for weight in self.weights}
        layers = {layer.name: name for name in replacements for layer in by_name[name].layers}
        factors: dict[str, dict[str, Tensor]] = {}
        for name, replacement in replacements.items():
            assert not isinstance(replacement.factors, Narrow)
            factors[name] = factor_tensors(name, replacement.factors, self.tensors[name].dtype)
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            owner = layers.get(stem(name))
            if owner is None or tensor.dim() != 2:
                tensors[name] = tensor
            else:
                tensors |= {f"{stem(name)}.{key}": value for key, value in factors[owner].items()}
        replaced = {
            name: record_of(by_name[name], r, self._has_bias(by_name[name])) for name, r in replacements.items()
        }
        return StateDictBackend(tensors, self.source, replaced)

    def _has_bias(self, weight: Weight) -> bool:
        return f"{weight.layers[0].name}.bias" in self.tensors

    def reloaded(self, folder: Path) -> StateDictBackend:
        """Itself: the file holds the tensors that are in memory."""
        return self

    def saved_in(self, run: Path, replacements: Callable[[], Mapping[str, Replacement]]) -> StateDictBackend:
        """The factored state dict of a run."""
        from lowrank.backends.torch.load import load

        tensors = load(run)
        assert isinstance(tensors, dict)
        return replace(self, tensors=tensors)

    with_tokenizer = fed_with = Unrun.refuse

    def save(self, folder: Path) -> None:
        """The factored state dict as safetensors, and what was replaced as JSON."""
        aliases = save_state(self.tensors, folder / MODEL_FILE)
        record = {"rebuild": {"kind": "state_dict"}, "replaced": self.replaced, "aliases": aliases}
        write_json(folder / RECORD_FILE, "model", record)


def _why_not(tied: list[str], tensor: Tensor) -> str:
    if not tensor.is_floating_point():
        return f"its type is {name_of(tensor.dtype)}, and only weights of floating-point numbers can be factored"
    if tensor.dim() > 2:
        return f"it has {tensor.dim()} dimensions, and a state dict does not say what layer it belongs to"
    if any(looks_like_embedding(name) for name in tied):
        return "an embedding, by its name: a lookup, not a product"
    if any(name.endswith("in_proj_weight") for name in tied):
        return "the packed projection of nn.MultiheadAttention, which reads it directly"
    if min(tensor.shape) < 1:
        return "it is empty"
    return ""


def _clash(tied: list[str], tensors: Mapping[str, Tensor]) -> str:
    """Why the factors' names would be taken already, or an empty string."""
    for name in tied:
        taken = {stem(name), f"{stem(name)}.left.weight", f"{stem(name)}.right.weight"} - {name}
        if taken & set(tensors):
            return f"its factors' names would clash with {sorted(taken & set(tensors))[0]}"
    return ""
