"""What is read in a piece's place when it is left out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from lowrank.backends.vocabulary.merges import merges_of
from lowrank.backends.vocabulary.pieces import Pieces


def respellings(pieces: Pieces, among: Collection[int]) -> dict[int, tuple[int, ...]]:
    """For each piece the pieces that its text is read as where it is missing: what its row is worth is told by how
    much a model's output changes when these stand in its place.

    Args:
        pieces: those of a tokenizer.
        among: ids that may be used, a closed set for instance; each piece is spelled without itself.

    Returns:
        By id, two ids or more. Pieces that cannot be spelled are missing: single characters, whole words, and what
        would be unknown.

    Example:
        >>> respellings(pieces, closed(pieces, most_common))[pieces.ids["##ings"]]
        (2075, 2015)
    """
    if pieces.kind == "WordLevel":
        return {}
    names = {pieces.names[i] for i in among if i in pieces.names}
    read = {"WordPiece": _greedily, "BPE": _merged, "Unigram": _best}[pieces.kind](pieces, names)
    found: dict[int, tuple[int, ...]] = {}
    for i, name in pieces.words().items():
        parts = read(name) if len(pieces.inner(name)) > 1 else ()
        if parts:
            found[i] = tuple(pieces.ids[part] for part in parts)
    return found


Read = Callable[[str], Sequence[str]]
"""From a piece to those that spell it; none if they do not."""


def _greedily(pieces: Pieces, names: set[str]) -> Read:
    """The longest piece first."""

    def read(piece: str) -> Sequence[str]:
        symbols, text, found = pieces.spelling(piece), pieces.inner(piece), list[str]()
        start = 0
        while start < len(text):
            ends = range(len(text), start, -1)
            mark = symbols[start].removesuffix(text[start])
            part = next((p for e in ends if (p := mark + text[start:e]) in names and p != piece), None)
            if part is None:
                return ()
            found.append(part)
            start += len(part) - len(mark)
        return found

    return read


def _merged(pieces: Pieces, names: set[str]) -> Read:
    """By the merges that are left without the piece."""
    merges = merges_of(pieces)

    def read(piece: str) -> Sequence[str]:
        _, found = merges.made(piece, names)
        return found if names.issuperset(found) else ()

    return read


def _best(pieces: Pieces, names: set[str]) -> Read:
    """The best sum of scores."""
    scores = {name: pieces.scores[i] for i, name in pieces.names.items() if name in names}

    def read(piece: str) -> Sequence[str]:
        best: list[tuple[float, list[str]] | None] = [(0.0, []), *[None] * len(piece)]
        for end in range(1, len(piece) + 1):
            for start in range(end):
                part, before = piece[start:end], best[start]
                if before is None or part not in scores or part == piece:
                    continue
                total, here = before[0] + scores[part], best[end]
                if here is None or total > here[0]:
                    best[end] = total, [*before[1], part]
        return best[-1][1] if best[-1] is not None else ()

    return read
