"""Narrower heads in torch: attention modules that compute at the width that their heads have left.

A layer that got narrower puts zeros in, or leaves inputs out, so that the code around it need not change. Most
attention modules run at a smaller width just as well, once the integers in which they hold the old one say the new one.
Names only propose: the layers are put between narrower neighbours, integers are set, and the model has to give what it
gave. What does not stays wide, which is slower but right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Signature
from lowrank.backends.records import is_padded
from lowrank.backends.torch.couplings import TOLERANCE
from lowrank.backends.torch.inputs import call, in_float32
from lowrank.backends.torch.layers import put
from lowrank.backends.torch.tensors import module_in_float32
from lowrank.core.truncation.attention import picks_of, spread_of
from lowrank.core.weight import Coupling
from lowrank.errors import ArtifactError
from lowrank.nn import NarrowLinear
from lowrank.nn.split import SplitLinear

COUNTS = re.compile(r"num|heads|layer|group|idx|bucket|dist")
"""In the name of an integer that counts something else than channels, whatever its size."""
OUTER = re.compile(r"model|hidden|embed|^dim$")
"""In the name of one that is the width of what a block reads, more often than that of all heads."""
MOST = 5
"""Integers that are tried together and apart."""

Entry = dict[str, Any]
"""What `record_of` gives, and with it, under `attention`, how much narrower the attention is."""


@dataclass(frozen=True)
class _Layer:
    """A narrower layer of an attention."""

    weight: str
    path: str
    heads: int
    rank: int
    """Channels that a head has left."""
    full: int
    """Those that it had."""
    gives: bool
    """Whether the channels are its outputs; its inputs if not."""


@dataclass(frozen=True)
class _Attention:
    """The narrower layers around one attention: query, key, value and output, or two of them."""

    path: str
    """The module that turns channels into heads."""
    up: int
    """How many levels that is above its first layer."""
    pairs: tuple[tuple[_Layer, _Layer], ...]

    @property
    def layers(self) -> tuple[_Layer, ...]:
        return tuple(layer for pair in self.pairs for layer in pair)


@dataclass(frozen=True)
class _Way:
    """How attentions of one class get narrower."""

    apart: bool
    """Query and key, and value and output, have each the width that they need; all have one width if not."""
    integers: tuple[str, ...] = ()
    """Attributes of the module that say the old width, or that of all heads."""


def narrow_heads_(
    module: nn.Module,
    signature: Signature | str,
    replaced: Mapping[str, Entry],
    couplings: Callable[[], Sequence[Coupling]],
) -> dict[str, Entry]:
    """Let attentions compute at the width that their heads have left, where they give the same then.

    Args:
        module: with its narrower layers in it, in evaluation mode; changed in place.
        signature: how it is fed, without which nothing can be tried.
        replaced: for each weight what `record_of` gave.
        couplings: gives those of the dense module.

    Returns:
        The records that are other ones now.
    """
    if isinstance(signature, str) or not any(map(is_padded, replaced.values())):
        return {}
    attentions = _attentions(module, replaced, couplings())
    if not attentions:
        return {}
    trial = _Trial(module_in_float32(module), in_float32(signature), replaced)
    ways: dict[type[nn.Module], _Way | None] = {}
    for attention in attentions:
        owner = module.get_submodule(attention.path)
        if ways.get(type(owner)) is None:
            ways[type(owner)] = next((w for w in _ways(owner, attention) if trial.keeps({attention: w})), None)
    wanted = {a: way for a in attentions if (way := ways[type(module.get_submodule(a.path))]) is not None}
    if not trial.keeps(wanted):
        wanted = {attention: way for attention, way in wanted.items() if trial.keeps({attention: way})}
    changed = trial.entries(wanted)
    put_narrower_(module, {entry["layers"][0]: entry for entry in changed.values()})
    return changed


def narrowed_as_(
    module: nn.Module, replaced: Mapping[str, Entry], decided: Mapping[str, Mapping[str, Any]]
) -> dict[str, Entry]:
    """The same for a module of which another one like it has shown what can be done.

    Args:
        module: with its narrower layers in it, changed in place.
        replaced: what was done to it.
        decided: the records of the other one.

    Returns:
        All records.
    """
    changed = {name: dict(decided[name]) for name in replaced if "attention" in decided[name]}
    put_narrower_(module, {entry["layers"][0]: entry for entry in changed.values()})
    return {**replaced, **changed}


def put_narrower_(module: nn.Module, entries: Mapping[str, Entry]) -> None:
    """Put narrower layers between narrower neighbours, and let the attention around them know.

    Args:
        module: changed in place.
        entries: by the name of a layer, what is said of it.
    """
    for path, entry in entries.items():
        put(module, path, _between(module.get_submodule(path), entry))
        set_widths_(module, path, entry)


def widen_(module: nn.Module, entries: Mapping[str, Entry], shapes: Mapping[str, tuple[int, int]]) -> bool:
    """Let attentions have the width again that the model's config says, with zeros where heads got narrower.

    Args:
        module: with narrow attentions, changed in place.
        entries: for each weight what `record_of` gave.
        shapes: of the dense weights.

    Returns:
        Whether there was any.
    """
    narrow = {name: entry for name, entry in entries.items() if entry.get("attention")}
    for name, entry in narrow.items():
        (path,), heads, gives = entry["layers"], entry["attention"], entry["attention"]["side"] == "outputs"
        rows, cols = shapes[name]
        full = (rows if gives else cols) // heads["count"]
        layer = module.get_submodule(path)
        if not isinstance(layer, NarrowLinear):
            layer = NarrowLinear.around(layer)
        wide = {"spread": gives, "picks": not gives, "attention": {**heads, "width": full}}
        put(module, path, _between(layer, {**entry, **wide}))
        owner = module.get_submodule(".".join(path.split(".")[: -int(heads.get("up", 1))]))
        for integer, width in heads.get("set", {}).items():
            vars(owner)[integer] = width // heads["width"] * full
    return bool(narrow)


def set_widths_(
    module: nn.Module, path: str, entry: Mapping[str, Any], origin: object = "the record of layers"
) -> None:
    """Set the integers of the attention around a layer that an entry names.

    Raises:
        ArtifactError: if one is not there, or would grow.
    """
    heads = entry.get("attention") or {}
    owner = module.get_submodule(".".join(path.split(".")[: -int(heads.get("up", 1))]))
    for name, width in heads.get("set", {}).items():
        before = vars(owner).get(name)
        if type(before) is not int or type(width) is not int or not 0 < width <= before:
            raise ArtifactError(
                f"{origin}: {type(owner).__name__} has no width {str(name)[:40]!r} of at least {str(width)[:20]}, as "
                "its narrower heads need; compress the original again"
            )
        vars(owner)[name] = width


def _attentions(module: nn.Module, replaced: Mapping[str, Entry], couplings: Sequence[Coupling]) -> list[_Attention]:
    """The attentions whose heads got narrower, by the module that holds key and value."""
    found: dict[str, list[tuple[_Layer, _Layer]]] = {}
    for coupling in couplings:
        if coupling.kind not in ("query_key", "value_output"):
            continue
        first, second = coupling.weights
        counts = (
            (coupling.heads, coupling.kv_heads) if coupling.kind == "query_key" else (coupling.kv_heads, coupling.heads)
        )
        gives = (True, coupling.kind == "query_key")
        layers = [
            _layer(module, name, replaced.get(name), heads, side)
            for name, heads, side in zip((first, second), counts, gives, strict=True)
        ]
        if layers[0] is not None and layers[1] is not None:
            inside = (layers[1] if coupling.kind == "query_key" else layers[0]).path.rpartition(".")[0]
            found.setdefault(inside, []).append((layers[0], layers[1]))
    attentions: list[_Attention] = []
    for path, pairs in found.items():
        up = 2 if isinstance(module.get_submodule(path), SplitLinear) else 1
        attentions.append(_Attention(path if up == 1 else path.rpartition(".")[0], up, tuple(pairs)))
    return attentions


def _layer(module: nn.Module, name: str, entry: Entry | None, heads: int, gives: bool) -> _Layer | None:
    """A weight's layer, if it is narrower by the last channels of every head."""
    if entry is None or not entry.get("spread" if gives else "picks") or len(entry["layers"]) != 1:
        return None
    path = entry["layers"][0]
    layer = module.get_submodule(path)
    assert isinstance(layer, NarrowLinear)
    index = layer.spread if gives else layer.picks
    assert index is not None
    count, size = entry["shape"][0 if gives else 1], layer.out_features if gives else layer.in_features
    if count % heads or size % heads or not count:
        return None
    rank, full = count // heads, size // heads
    wanted = spread_of(heads, rank, full) if gives else picks_of(heads, rank, full)
    if not np.array_equal(index.cpu().numpy(), np.where(wanted < 0, count, wanted)):
        return None
    return _Layer(name, path, heads, rank, full, gives)


def _ways(owner: nn.Module, attention: _Attention) -> Iterator[_Way]:
    """What can be tried, that which saves most first."""
    yield _Way(apart=True)
    layers = attention.layers
    if len(attention.pairs) != 2:
        return
    widths = {layer.full for layer in layers} | {layer.heads * layer.full for layer in layers}
    named = [n for n, v in vars(owner).items() if type(v) is int and v in widths and not COUNTS.search(n)]
    inner = [name for name in named if not OUTER.search(name)][:MOST]
    for names in (inner, named[:MOST]):
        for size in range(len(names), -1, -1):
            for some in combinations(names, size):
                yield _Way(False, some)
        if len(names) == len(named):
            return


class _Trial:
    """A module that can be run with some of its attentions narrower."""

    def __init__(self, module: nn.Module, signature: Signature, replaced: Mapping[str, Entry]) -> None:
        self.module, self.signature, self.replaced = module, signature, replaced
        self.feed = signature.example(2, 8)
        self.before = self._run()

    def entries(self, wanted: Mapping[_Attention, _Way]) -> dict[str, Entry]:
        """The records of the layers of some attentions, made narrower."""
        return {
            layer.weight: self._entry(attention, pair, layer, way)
            for attention, way in wanted.items()
            for pair in attention.pairs
            for layer in pair
        }

    def _entry(self, attention: _Attention, pair: Sequence[_Layer], layer: _Layer, way: _Way) -> Entry:
        width = max(each.rank for each in (pair if way.apart else attention.layers))
        heads: Entry = {"side": "outputs" if layer.gives else "inputs", "count": layer.heads, "width": width}
        if way.integers and layer is attention.layers[0]:
            owner = self.module.get_submodule(attention.path)
            heads["up"] = attention.up
            heads["set"] = {name: vars(owner)[name] // layer.full * width for name in way.integers}
        padded = layer.rank < width
        return {
            **self.replaced[layer.weight],
            "spread": padded and layer.gives,
            "picks": padded and not layer.gives,
            "attention": heads,
        }

    def keeps(self, wanted: Mapping[_Attention, _Way]) -> bool:
        """Whether the model gives what it gave when some attentions are narrower; it is as it was afterwards."""
        if not wanted or self.before is None:
            return False
        entries = {entry["layers"][0]: entry for entry in self.entries(wanted).values()}
        layers = {path: self.module.get_submodule(path) for path in entries}
        owners = [self.module.get_submodule(attention.path) for attention in wanted]
        integers = [
            (owner, name, vars(owner)[name])
            for owner, way in zip(owners, wanted.values(), strict=True)
            for name in way.integers
        ]
        try:
            put_narrower_(self.module, entries)
            after = self._run()
        finally:
            for path, layer in layers.items():
                put(self.module, path, layer)
            for owner, name, number in integers:
                vars(owner)[name] = number
        return after is not None and all(_same(self.before[name], after.get(name)) for name in self.before)

    def _run(self) -> dict[str, Tensor] | None:
        try:
            with torch.no_grad():
                return {n: y.float() for n, y in call(self.signature, self.module, self.feed).items()}
        except Exception:
            # Code that insists on its widths.
            return None


def _same(before: Tensor, after: Tensor | None) -> bool:
    if after is None or before.shape != after.shape:
        return False
    return bool(((after - before).abs() <= TOLERANCE * before.abs().max()).all())


def _between(layer: nn.Module, entry: Mapping[str, Any]) -> nn.Module:
    """A layer between the neighbours that an entry tells of."""
    assert isinstance(layer, NarrowLinear)
    heads, rank = entry["attention"], int(entry["rank"])
    count, width = heads["count"], heads["width"]
    if heads["side"] == "outputs":
        index = spread_of(count, rank, width)
        index = np.where(index < 0, count * rank, index)
        spread = torch.from_numpy(index).to(layer.linear.weight.device) if entry["spread"] else None
        return layer.between(layer.in_features, count * width, spread, None)
    picks = torch.from_numpy(picks_of(count, rank, width)).to(layer.linear.weight.device) if entry["picks"] else None
    return layer.between(count * width, layer.out_features, None, picks)
