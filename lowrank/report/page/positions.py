"""Where in a model a weight is: in which block, as which layer of it, and in which part of the whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lowrank.core.match import EMBEDDING, HEAD_NAMES, stem
from lowrank.core.weight import Role

PARTS = ("attention", "feed-forward", "embeddings", "head", "convolutions", "rest")
"""Of a model, in the order in which they are shown."""

ATTENTION = re.compile(
    r"att(e)?n|query|key|value|(^|[._/])(q|k|v|o|qkv|q_proj|k_proj|v_proj|o_proj|out_proj|in_proj)([._/]|$)", re.I
)
FEED_FORWARD = re.compile(
    r"mlp|ffn|feed_?forward|intermediate|output\.dense|expert|denserelu|4h|"
    r"(^|[._/])(fc\w*|c_fc|c_proj|lin\d|linear\d|w[123io]\w*|up\w*|down\w*|gate\w*)([._/]|$)",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Place:
    """A cell of the grid of a model's weights."""

    row: str
    """The block, as all of the name that comes before `kind`; empty outside of numbered blocks."""
    kind: str
    """The layer in it, which other blocks have too."""


def places_of(names: Sequence[str]) -> dict[str, Place]:
    """The place of every weight, by its name.

    Blocks are numbered, but names can hold several numbers: those of stages and blocks, or of blocks and experts. The
    first or the last of them is taken for that of the block, whichever leaves fewer empty cells.

    Example:
        >>> places_of(["encoder.layer.0.attention.query.weight"]).popitem()[1]
        Place(row='encoder.layer.0', kind='attention.query')
    """
    first, last = ({name: _split(name, at) for name in names} for at in (0, -1))
    return first if _fullness(first.values()) >= _fullness(last.values()) else last


def _split(name: str, which: int) -> Place:
    parts = re.split(r"([./])", stem(name))
    # Between parts are what separates them; a number at the end names no block.
    numbers = [i for i in range(0, len(parts) - 2, 2) if parts[i].isdecimal()]
    if not numbers:
        return Place("", stem(name))
    at = numbers[which]
    return Place("".join(parts[: at + 1]), "".join(parts[at + 2 :]))


def _fullness(places: Iterable[Place]) -> float:
    cells = set(places)
    grid = len({p.row for p in cells}) * len({p.kind for p in cells})
    return len(cells) / grid if grid else 1.0


def row_labels(rows: Iterable[str]) -> dict[str, str]:
    """What blocks are called: their number where that tells them apart, else the whole of their name.

    Example:
        >>> row_labels(["encoder.layer.0", "encoder.layer.1"])
        {'encoder.layer.0': 'Block 0', 'encoder.layer.1': 'Block 1'}
    """
    named = list(dict.fromkeys(rows))
    alike = {re.sub(r"\d+", "#", row) for row in named if row}
    if len(alike) > 1:
        return {row: row or "Outside of blocks" for row in named}
    labels = {row: ".".join(re.findall(r"(?<![^./])\d+(?![^./])", row)) for row in named}
    return {row: f"Block {label}" if row else "Outside of blocks" for row, label in labels.items()}


def part_of(name: str, role: Role | None = None, coupling: str = "", reason: str = "") -> str:
    """The part of a model that a tensor belongs to.

    Args:
        name: of the tensor.
        role: of the weight; None for a tensor that is left as it is.
        coupling: the kind of a coupling that it is in, if it is in one.
        reason: why it is left as it is.
    """
    words = set(re.split(r"[./]", name))
    if role == "embedding" or (role is None and (EMBEDDING.search(name) or "looked up" in reason)):
        return "embeddings"
    if role == "head" or (role is None and (words & HEAD_NAMES or "for a head" in reason)):
        return "head"
    if role == "conv" or (role is None and "a convolution" in reason):
        return "convolutions"
    if coupling == "hidden":
        return "feed-forward"
    if coupling in ("query_key", "value_output", "rotary_halves", "rotary_neighbours") or ATTENTION.search(name):
        return "attention"
    return "feed-forward" if FEED_FORWARD.search(name) else "rest"


def couplings_of(groups: Iterable[tuple[str, Sequence[str]]]) -> Mapping[str, str]:
    """The kind of coupling of each weight, of those that tell where it is."""
    return {name: kind for kind, weights in groups if kind != "same_input" for name in weights}
