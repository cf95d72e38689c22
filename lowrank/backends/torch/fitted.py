"""A module that somebody's code builds, with the numbers of a checkpoint in it, in the checkpoint's type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.backends.names import Fit, Reading, fit_names, is_averaged, misfit, no_place
from lowrank.backends.not_whole import part_of_names
from lowrank.core.listing import listed
from lowrank.core.match import in_block
from lowrank.errors import UnsupportedModel, first_line

HALF = (torch.float16, torch.bfloat16)


def fit_state_(module: nn.Module, state: Mapping[str, Tensor], origin: Path, builder: str) -> Reading:
    """Put a checkpoint's tensors into a module, which takes on the type of those that are stored in 16 bits.

    Args:
        module: changed in place.
        state: the tensors by the names that they are stored under.
        origin: the file, for errors.
        builder: what built the module, for errors.

    Raises:
        UnsupportedModel: if they are not the module's.
    """
    places: dict[str, Tensor] = {n: t for n, t in module.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    fit = fit_names(places, state)
    given = {new: state[old] for old, new in fit.names.items()}
    missing = _missing(places, given)
    odd = next((name for name in given if given[name].shape != places[name].shape), None)
    lacking = [name for name in missing if isinstance(places[name], nn.Parameter) or "running_" in name]
    if lacking or odd or not given:
        part = part_of_names(origin, {name: tuple(tensor.shape) for name, tensor in state.items()})
        if part is not None:
            raise part.refused(origin)
        why = misfit(places, fit, lacking) if odd is None or lacking else _other_shape(fit, odd, places, state)
        raise UnsupportedModel(
            f"{origin} does not fit the module that {builder} builds: {why}; build the module as it was trained"
        )
    _check_left(fit, places, state, origin, builder)
    for name, tensor in given.items():
        place = places[name]
        if tensor.dtype in HALF and place.is_floating_point() and place.dtype not in HALF:
            place.data = place.data.to(tensor.dtype)
    try:
        module.load_state_dict(given, strict=False)
    except Exception as error:
        raise UnsupportedModel(f"{origin} does not fit the module that {builder} builds: {first_line(error)}") from None
    notes = (*fit.taken_off, *no_place(fit.left))
    if missing:
        kept = f"{len(missing)} buffers are not in the file, and stay as {builder} makes them: {listed(missing)}"
        notes = (*notes, kept)
    return Reading(notes=notes)


def _missing(places: Mapping[str, Tensor], given: Iterable[str]) -> list[str]:
    """The names that nothing is given for, those that are tied to another name aside."""
    filled = {id(places[name]) for name in given}
    return [name for name, tensor in places.items() if id(tensor) not in filled and not name.endswith("tracked")]


def _other_shape(fit: Fit, name: str, places: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
    stored = next(old for old, new in fit.names.items() if new == name)
    here, there = (" x ".join(map(str, t.shape)) or "one number" for t in (places[name], state[stored]))
    return f"the module has {name} as {here}, the file has {stored} as {there}"


def _check_left(
    fit: Fit, places: Mapping[str, Tensor], state: Mapping[str, Tensor], origin: Path, builder: str
) -> None:
    """Refuse blocks that the module has fewer of: what is computed would be another model."""
    known = {_unnumbered(name) for name in places}
    start = f"{fit.prefix}." if fit.prefix else ""
    for name in fit.left:
        own = name.removeprefix(start)
        if state[name].dim() > 1 and in_block(own) and _unnumbered(own) in known and not is_averaged(name):
            raise UnsupportedModel(
                f"{origin} does not fit the module that {builder} builds: it has {name}, and the module has fewer such "
                "layers; build the module as it was trained"
            )


def _unnumbered(name: str) -> str:
    return re.sub(r"(^|\.)\d+(?=\.)", r"\1#", name)
