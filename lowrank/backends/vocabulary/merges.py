"""How byte-pair encoding puts a piece together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise

from lowrank.backends.vocabulary.pieces import Pieces


class Merges:
    """The merges of a tokenizer: the pair of the lowest rank is merged first, of equal ones the leftmost."""

    def __init__(self, pieces: Pieces) -> None:
        """Of a BPE tokenizer."""
        self._pieces = pieces
        self._ranks = {pair: rank for rank, pair in enumerate(pieces.merges)}
        self._known: dict[str, set[str]] = {}
        self._first: dict[str, tuple[str, str]] = {}
        for pair in self._ranks:
            self._first.setdefault(pieces.merged(*pair), pair)

    def parts(self, piece: str) -> set[str]:
        """The pieces that a piece is merged from and that must be there for it to be made, with itself.

        In a word that is read as this piece and others, no merge goes over its edges. So it is made in every word as
        it is made alone. One that is not made alone is read only where it is a whole word or is made of bytes; its
        parts are then those of the first merge that makes it.
        """
        if piece not in self._known:
            self._known[piece] = self._parts(piece)
        return self._known[piece]

    def _parts(self, piece: str) -> set[str]:
        made, last = self._made(piece)
        if last != [piece]:
            made, waiting = set[str](), [piece]
            while waiting:
                part = waiting.pop()
                if part not in made:
                    made.add(part)
                    waiting += self._first.get(part, ())
        return {part for part in made if part in self._pieces.ids}

    def _made(self, piece: str) -> tuple[set[str], list[str]]:
        """All pieces that there are while a piece is put together, and those at the end."""
        symbols = list(self._pieces.spelling(piece))
        made = set(symbols)
        while (best := min(self._candidates(symbols), default=None)) is not None:
            at = best[1]
            symbols[at : at + 2] = [self._pieces.merged(*symbols[at : at + 2])]
            made.add(symbols[at])
        return made, symbols

    def _candidates(self, symbols: list[str]) -> Iterator[tuple[int, int]]:
        for at, pair in enumerate(pairwise(symbols)):
            if pair in self._ranks:
                yield self._ranks[pair], at


@lru_cache(maxsize=2)
def merges_of(pieces: Pieces) -> Merges:
    """The merges of a tokenizer, which remember what they have put together."""
    return Merges(pieces)


def kept_merges(pieces: Pieces, kept: Iterable[str]) -> list[int]:
    """The places of the merges whose two parts and whose result are all among some pieces."""
    names = set(kept)
    return [place for place, pair in enumerate(pieces.merges) if names.issuperset((*pair, pieces.merged(*pair)))]
