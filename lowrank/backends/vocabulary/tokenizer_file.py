"""A tokenizer.json with fewer pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.vocabulary.closure import closed
from lowrank.backends.vocabulary.merges import kept_merges
from lowrank.backends.vocabulary.pieces import Pieces, read_pieces, renumber_outside

Ids = NDArray[np.int64]


def cut_tokenizer(content: Mapping[str, Any], keep: Iterable[int]) -> tuple[dict[str, Any], Ids]:
    """A tokenizer without the pieces that nobody needs.

    A text whose old tokens all stay has the same tokens in the new tokenizer. Any other text is spelled by pieces that
    are left, or is unknown; it is never an error. One thing can differ for a text that stays: a word that WordPiece
    did not know, for a long piece hid shorter ones that spell it, may now be known.

    Args:
        content: a parsed tokenizer.json with a model of the type BPE, WordPiece, WordLevel or Unigram; not changed.
        keep: ids that must stay; `closed` says which others stay because of them.

    Returns:
        The new content of tokenizer.json, and for each new id the old one, in rising order, int64.

    Raises:
        UnsupportedModel: if the tokenizer is of another type.
        VocabularyError: if an id of `keep` is none of the tokenizer's.
    """
    pieces = read_pieces(content)
    old_ids = np.array(sorted(closed(pieces, keep)), np.int64)
    new_of = {int(old): new for new, old in enumerate(old_ids)}
    return renumbered(content, pieces, new_of), old_ids


def renumbered(content: Mapping[str, Any], pieces: Pieces, new_of: Mapping[int, int]) -> dict[str, Any]:
    """A tokenizer.json with new ids, in which only pieces with a new id are left.

    Args:
        content: of the file.
        pieces: those of the file.
        new_of: from old ids to new ones; has all ids that the file itself names.
    """

    def new(old: int) -> int:
        # Padding may have an id that no token has.
        return new_of.get(old, old)

    added = content.get("added_tokens") or []
    return {
        **content,
        **renumber_outside(content, new),
        "added_tokens": [{**entry, "id": new_of[entry["id"]]} for entry in added],
        "model": _model(content["model"], pieces, new_of, new),
    }


def _model(
    model: Mapping[str, Any], pieces: Pieces, new_of: Mapping[int, int], new: Callable[[int], int]
) -> dict[str, Any]:
    if pieces.kind == "Unigram":
        vocab = [entry for i, entry in enumerate(model["vocab"]) if i in new_of]
        return {**model, "vocab": vocab, "unk_id": new(model["unk_id"])}
    changed: dict[str, Any] = {**model, "vocab": {name: new_of[i] for name, i in _stored(model) if i in new_of}}
    if pieces.kind == "BPE":
        places = kept_merges(pieces, changed["vocab"])
        changed["merges"] = [model["merges"][place] for place in places]
    return changed


def _stored(model: Mapping[str, Any]) -> list[tuple[str, int]]:
    return sorted(model["vocab"].items(), key=lambda entry: entry[1])
