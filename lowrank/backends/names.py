"""Names of stored tensors against those of a model: what wrappers put before them is taken off where they then fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from lowrank.core.listing import listed

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Parts of names that torch.compile, FSDP, activation checkpointing and Fabric add, anywhere in a name."""
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|avg|shadow|teacher)([._]|$)", re.IGNORECASE)
"""Names that trainers give to a moving average of the weights."""


def is_averaged(name: str) -> bool:
    """Whether a name is one that trainers give to a moving average of the weights.

    Example:
        >>> is_averaged("model_ema"), is_averaged("schema")
        (True, False)
    """
    return AVERAGED.search(name) is not None


@dataclass(frozen=True)
class Fit:
    """How the names of stored tensors become those of a model."""

    names: Mapping[str, str]
    """By the name of each stored tensor that is the model's own, the name in the model."""
    bare: Mapping[str, str]
    """The same for all stored tensors from whose names something could be taken off in the same way."""
    prefix: str
    """What was taken off the beginning of each; empty for nothing."""
    left: tuple[str, ...]
    """Stored tensors that the model has no place for."""
    wrapped: tuple[str, ...] = ()
    """Parts that were taken out of the middle of names."""

    @property
    def is_changed(self) -> bool:
        """Whether any name is another one in the model."""
        return bool(self.prefix or self.wrapped)

    @property
    def taken_off(self) -> tuple[str, ...]:
        """A note on what was taken off; none if that is nothing."""
        if not self.is_changed:
            return ()
        parts = [*([repr(f"{self.prefix}.")] if self.prefix else []), *(repr(part) for part in self.wrapped)]
        return (f"{' and '.join(parts)} was taken off the stored names, which then fit the model",)


@dataclass(frozen=True)
class Reading:
    """What was read of a checkpoint."""

    missing: tuple[str, ...] = ()
    """Tensors of the model that it does not have."""
    notes: tuple[str, ...] = ()
    """What was done with the others, for the report."""


def no_place(names: Sequence[str]) -> tuple[str, ...]:
    """A note on stored tensors that a model has no place for; none if there are none."""
    if not names:
        return ()
    what = "a stored tensor" if len(names) == 1 else f"{len(names)} stored tensors"
    return (f"the model has no place for {what}, left out: {listed(names)}",)


def fit_names(wanted: Iterable[str], stored: Iterable[str], base: str = "") -> Fit:
    """Names as the model has them, with the one prefix taken off with which the most of them fit.

    Nothing is taken off where that does not make more names fit. Of a moving average and the weights themselves, the
    weights are taken.

    Args:
        wanted: names of the model's tensors.
        stored: those of the file's.
        base: what transformers puts before the names of a model without its head (`bert`); a checkpoint of a model with
            a head fits a model without one, and the other way round.

    Example:
        >>> fit_names({"a"}, {"module.a", "step"}).names
        {'module.a': 'a'}
    """
    known, stored = _with_base(set(wanted), base), list(stored)
    places = {part for name in known for part in name.split(".")}
    best: tuple[int, Fit] | None = None
    for parts in (frozenset[str](), WRAPPERS, WRAPPERS | {"module"}):
        cleaned = {name: _without(name, parts - places) for name in stored}
        prefix, count = _prefix(known, cleaned.values())
        if best is None or count > best[0]:
            best = count, _fit(known, cleaned, prefix, parts - places)
    assert best is not None
    return best[1]


def misfit(wanted: Collection[str], fit: Fit, lacking: Sequence[str]) -> str:
    """For an error: a name that is expected and one that is stored, and how many there are.

    Args:
        wanted: names of the model's tensors.
        fit: of the stored names.
        lacking: those of the model for which nothing is stored.

    Example:
        >>> misfit(["a.weight"], fit_names(["a.weight"], ["b.weight"]), ["a.weight"])
        'it expects a.weight (1 of 1 are missing), and the file has b.weight'
    """
    first = next(iter(lacking), next(iter(wanted), "nothing"))
    free = fit.left or tuple(fit.names) or ("nothing",)
    return f"it expects {first} ({len(lacking)} of {len(wanted)} are missing), and the file has {closest(first, free)}"


def closest(name: str, others: Sequence[str]) -> str:
    """The name that is most like one among others, of which there is at least one."""
    return (get_close_matches(name, others[:2000], 1, 0.0) or others)[0]


def _with_base(wanted: set[str], base: str) -> set[str]:
    """The names that transformers itself finds, with and without what stands before those of the model in the head."""
    start = f"{base}."
    if not base:
        return wanted
    if any(name.startswith(start) for name in wanted):
        return wanted | {name.removeprefix(start) for name in wanted}
    return wanted | {f"{start}{name}" for name in wanted}


def _without(name: str, parts: frozenset[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in parts) if parts else name


def _prefix(known: Collection[str], stored: Iterable[str]) -> tuple[str, int]:
    """The prefix with which the most stored names fit, and how many that are."""
    votes = Counter[str]()
    for name in stored:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in known:
                votes[".".join(parts[:start])] += 1
    order = sorted(votes.items(), key=lambda each: (-each[1], is_averaged(each[0]), len(each[0])))
    return order[0] if order else ("", 0)


def _fit(known: Collection[str], cleaned: Mapping[str, str], prefix: str, parts: frozenset[str]) -> Fit:
    start = f"{prefix}." if prefix else ""
    # Of two that would have one name the first has it.
    first: dict[str, str] = {}
    for stored, name in cleaned.items():
        if name.startswith(start):
            first.setdefault(name.removeprefix(start), stored)
    bare = {stored: name for name, stored in first.items()}
    ours = {stored: name for stored, name in bare.items() if name in known}
    used = {part for stored in ours if cleaned[stored] != stored for part in stored.split(".") if part in parts}
    return Fit(ours, bare, prefix, tuple(name for name in cleaned if name not in ours), tuple(sorted(used)))
