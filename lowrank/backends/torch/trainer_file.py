"""What a torch file holds: the mapping with the weights, and what trainers save beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lowrank.backends.names import is_averaged
from lowrank.core.listing import listed
from lowrank.errors import UnsupportedModel

USUAL = ("state_dict", "model_state_dict", "model", "module", "model_state", "net", "network", "weights", "params")
"""What trainers call the mapping with the weights: where there is one of these, other mappings are beside it."""
TRAINING = re.compile(r"optim|sched|scaler|(^|_)(amp|rng|loops?|callbacks?|grads?)(_|$)", re.IGNORECASE)
"""Names of what a trainer needs to go on, and a model does not."""
DEPTH = 8
"""Mappings in each other."""


@dataclass(frozen=True)
class TrainerFile:
    """The weights in a file, and the names of what else is in it."""

    weights: Mapping[str, Tensor]
    place: str = ""
    """The keys that lead to them, with points between; empty for the file's own mapping."""
    beside: tuple[str, ...] = ()
    """Keys of what else the file holds."""
    others: tuple[str, ...] = ()
    """Other weights, which `--weights` can name: mappings, or what the names of some tensors begin with."""

    unnamed: tuple[str, ...] = ()
    """Mappings that hold a moving average as a list of tensors, which nothing names."""

    @property
    def maker(self) -> str:
        """Who wrote it, by what is beside the weights: `Lightning`, `DeepSpeed`; empty if that is not known."""
        known = {"pytorch-lightning_version": "Lightning", "ds_version": "DeepSpeed", "ds_config": "DeepSpeed"}
        return next((maker for key, maker in known.items() if key in self.beside), "")

    @property
    def notes(self) -> list[str]:
        """What was taken and what was not."""
        told: list[str] = []
        if self.beside:
            where = f"the weights are under {self.place!r}" if self.place else "the weights are the file's own tensors"
            told.append(f"{where}; the file also holds {listed(self.beside)}")
        for name in self.others:
            what = "a moving average of the weights (EMA)" if is_averaged(name) else "other weights"
            told.append(f"{name!r} holds {what}, which are not the ones taken; --weights {name} takes them")
        for name in self.unnamed:
            told.append(
                f"{name!r} holds a moving average of the weights (EMA) without names, which cannot be taken; copy it "
                "into the module with the trainer's own code, and save its state dict"
            )
        return told


def weights_in(content: Mapping[Any, Any], wanted: str | None = None) -> TrainerFile | None:
    """The weights in what a trainer saved; None if there are none.

    A mapping of a usual name is taken before all others. Otherwise all tensors count, under the names that lead to
    them, but for what belongs to training; a moving average counts only where there is nothing else.

    Args:
        content: what was saved.
        wanted: the keys that lead to the weights, or the last of them, or what the names of the tensors begin with.

    Raises:
        UnsupportedModel: if there is nothing of the wanted name.
    """
    place = _main(content, ())
    if wanted is not None:
        place = _named(content, wanted)
        if place is None:
            return _beginning(weights_in(content), wanted)
    if place is None:
        return None
    weights = _flat(_at(content, place))
    others = (*_others(content, place, ()), *(name for name in _averaged_beginnings(weights) if wanted is None))
    beside = tuple(_beside(content, place))
    unnamed = tuple(name for name in beside if is_averaged(name) and _is_unnamed(content.get(name)))
    return TrainerFile(weights, ".".join(place), beside, others, unnamed)


def weights_named(weights: Mapping[str, Tensor], wanted: str | None) -> TrainerFile:
    """The same for a file that holds nothing but tensors.

    Raises:
        UnsupportedModel: if no name begins as wanted.
    """
    whole = TrainerFile(weights, others=tuple(_averaged_beginnings(weights)))
    return whole if wanted is None else _beginning(whole, wanted)


def _beginning(file: TrainerFile | None, wanted: str) -> TrainerFile:
    start = f"{wanted}."
    taken = {n.removeprefix(start): t for n, t in (file.weights if file else {}).items() if n.startswith(start)}
    if file is None or not taken:
        if file is not None and wanted in file.unnamed:
            raise UnsupportedModel(f"{file.notes[-1]}; leave --weights out")
        there = [*([file.place] if file and file.place else []), *(file.others if file else ())]
        known = f"; the file has {', '.join(there)}" if there else ""
        raise UnsupportedModel(
            f"there are no named weights under {wanted!r}{known}; leave --weights out, or correct it"
        )
    return replace(file, weights=taken, place=f"{file.place}.{wanted}".lstrip("."), others=())


def _averaged_beginnings(weights: Mapping[str, Tensor]) -> list[str]:
    """What the names of a moving average begin with, where there are other names too."""
    found: dict[str, int] = {}
    for name in weights:
        parts = name.split(".")[:-1]
        end = next((i for i, part in enumerate(parts[:3]) if is_averaged(part)), None)
        if end is not None:
            start = ".".join(parts[: end + 1])
            found[start] = found.get(start, 0) + 1
    return list(found) if sum(found.values()) < len(weights) else []


def _children(mapping: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    for key, value in mapping.items():
        value = value.state_dict() if isinstance(value, nn.Module) else value
        if isinstance(value, Mapping) and not TRAINING.search(str(key)) and "param_groups" not in value:
            yield str(key), value


def _at(content: Mapping[Any, Any], place: tuple[str, ...]) -> Mapping[Any, Any]:
    for key in place:
        content = dict(_children(content))[key]
    return content


def _flat(mapping: Mapping[Any, Any], start: str = "", seen: frozenset[int] = frozenset()) -> dict[str, Tensor]:
    """All tensors of a mapping and of those in it, but for training and moving averages."""
    found = {f"{start}{key}": value for key, value in mapping.items() if isinstance(value, Tensor)}
    if len(seen) < DEPTH and id(mapping) not in seen:
        for key, child in _children(mapping):
            if not is_averaged(key):
                found |= _flat(child, f"{start}{key}.", seen | {id(mapping)})
    return found


def _is_unnamed(value: Any) -> bool:
    parts = value.values() if isinstance(value, Mapping) else [value]
    return any(isinstance(part, list | tuple) and any(isinstance(t, Tensor) for t in part) for part in parts)


def _has_weights(mapping: Mapping[Any, Any], depth: int = DEPTH) -> bool:
    if any(isinstance(value, Tensor) and value.dim() for value in mapping.values()):
        return True
    return depth > 0 and any(_has_weights(child, depth - 1) for _, child in _children(mapping))


def _main(mapping: Mapping[Any, Any], place: tuple[str, ...]) -> tuple[str, ...] | None:
    """The keys that lead to a model's weights."""
    if len(place) > DEPTH or "param_groups" in mapping:
        return None
    children = {key: child for key, child in _children(mapping) if _has_weights(child)}
    usual = next((key for key in USUAL if key in children), None)
    matrices = any(
        isinstance(value, Tensor) and value.dim() > 1 and not TRAINING.search(str(key))
        for key, value in mapping.items()
    )
    if usual is not None and not matrices:
        return _main(children[usual], (*place, usual))
    plain = [key for key in children if not is_averaged(key)]
    tensors = any(isinstance(value, Tensor) for value in mapping.values())
    if not matrices and len(plain) == 1:
        return _main(children[plain[0]], (*place, plain[0]))
    if plain or matrices or (tensors and not children):
        return place
    return next((_main(child, (*place, key)) for key, child in children.items()), None)


def _named(mapping: Mapping[Any, Any], wanted: str) -> tuple[str, ...] | None:
    """The keys that lead to the weights under some keys, or under the last of them."""
    waiting: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), mapping)]
    found: list[tuple[str, ...]] = []
    for place, each in waiting:
        if place and wanted in (".".join(place), place[-1]) and _has_weights(each):
            found.append(place)
        if len(place) < 3:
            waiting += [((*place, key), child) for key, child in _children(each)]
    exact = sorted(found, key=lambda place: (".".join(place) != wanted, len(place)))
    return _main(_at(mapping, exact[0]), exact[0]) if exact else None


def _others(mapping: Mapping[Any, Any], place: tuple[str, ...], here: tuple[str, ...]) -> Iterator[str]:
    """Mappings with weights that were not taken, the outermost of each."""
    inside = here[: len(place)] == place
    for key, child in _children(mapping):
        path = (*here, key)
        if len(path) > DEPTH:
            continue
        if (inside and not is_averaged(key)) or (not inside and place[: len(path)] == path):
            yield from _others(child, place, path)
        elif _has_weights(child):
            yield ".".join(path)


def _beside(content: Mapping[Any, Any], place: tuple[str, ...]) -> Iterator[str]:
    """Keys of what was not taken, from the outermost mapping to the one with the weights."""
    for depth in range(len(place) + 1):
        taken = {place[depth]} if depth < len(place) else {k for k, _ in _children(content) if not is_averaged(k)}
        for key, value in content.items():
            if str(key) not in taken and not (depth == len(place) and isinstance(value, Tensor)):
                yield ".".join((*place[:depth], str(key)))
        content = _at(content, place[depth : depth + 1])
