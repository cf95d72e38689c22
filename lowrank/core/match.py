"""What a pattern for weight names means, and which role a name suggests."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from lowrank.core.weight import Role, Weight
from lowrank.errors import PatternError

HEAD_NAMES = frozenset(
    [
        "classifier",
        "head",
        "lm_head",
        "score",
        "pooler",
        "pre_classifier",
        "qa_outputs",
        "cls",
        "logits_proj",
        "out_head",
    ]
)
EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe|shared|tok|pos|relative_attention_bias)(\.|$)|_emb(\.|$)")


def stem(name: str) -> str:
    """The name without the `.weight` that most end in."""
    return name.removesuffix(".weight")


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern selects a name.

    `re:...` is a regular expression to be found anywhere; a pattern with `*`, `?` or `[` must match the whole
    name; anything else is a name or a run of whole parts of one.

    Example:
        >>> matches("attention.self", "layer.0.attention.self.query.weight"), matches("attn", "layer.0.attn_out")
        (True, False)
    """
    if pattern.startswith("re:"):
        return re.search(pattern[3:], name) is not None
    if any(mark in pattern for mark in "*?["):
        return fnmatchcase(name, pattern) or fnmatchcase(stem(name), pattern)
    return f".{pattern}." in f".{name}."


def name_filter(include: Sequence[str], exclude: Sequence[str], names: Iterable[str]) -> Callable[[str], bool]:
    """Whether a name is wanted: in `include` (everything, if that is empty) and not in `exclude`.

    Raises:
        PatternError: if a pattern is malformed, or selects none of `names`.
    """
    known = list(names)
    for pattern in (*include, *exclude):
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise PatternError(f"{pattern!r} is not a regular expression: {error}") from None
        if not any(matches(pattern, name) for name in known):
            raise PatternError(
                f"{pattern!r} selects no weight{nearest(pattern, known)}; give a name, some whole parts of one, "
                "a glob such as '*.query.weight', or 're:' and a regular expression"
            )

    def wanted(name: str) -> bool:
        included = not include or any(matches(p, name) for p in include)
        return included and not any(matches(p, name) for p in exclude)

    return wanted


def nearest(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` for the closest known names, or nothing."""
    names = list(known)
    parts = {part for name in names for part in stem(name).split(".") if not part.isdigit()}
    close = difflib.get_close_matches(wrong, names, n=2, cutoff=0.8)
    close = close or difflib.get_close_matches(wrong, sorted(parts), n=2, cutoff=0.6)
    close = close or difflib.get_close_matches(wrong, names, n=2, cutoff=0.4)
    return f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""


def role_of(weights: Iterable[Weight]) -> dict[str, Role]:
    """The role of each weight, by weight name; from its layers' kind and its name alone: no architecture needs code.

    Tables and convolutions are told by how they are applied. A linear weight inside a numbered block
    (`layer.3.attention.query`) is a projection. Outside, it is part of a head. A model without numbered blocks has only
    projections, except what is named like a head or shaped like a classifier (at least eight times as many inputs
    as outputs).
    """
    roles: dict[str, Role] = {}
    linear: list[Weight] = []
    for weight in weights:
        kinds = {layer.kind for layer in weight.layers}
        if "lookup" in kinds or "conv" in kinds:
            roles[weight.name] = "embedding" if "lookup" in kinds else "conv"
        else:
            linear.append(weight)
    has_blocks = any(in_block(weight.name) for weight in linear)
    for weight in linear:
        if has_blocks:
            roles[weight.name] = "projection" if in_block(weight.name) else "head"
        else:
            named = bool(HEAD_NAMES & set(stem(weight.name).split(".")))
            roles[weight.name] = "head" if named or weight.rows * 8 <= weight.cols else "projection"
    return roles


def in_block(name: str) -> bool:
    """Whether a weight's name has a number before its layer: `layer.3.query.weight`, but not `classifier.3.weight`."""
    parts = stem(name).split(".")
    return any(part.isdigit() for part in parts[:-1]) and not HEAD_NAMES & set(parts)


def looks_like_embedding(name: str) -> bool:
    """Whether a bare tensor's name suggests a lookup table: there is no module to ask."""
    return EMBEDDING.search(name.lower()) is not None
