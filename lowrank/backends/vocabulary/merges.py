"""How byte-pair encoding puts a piece together."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
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
        made, last = self.made(piece)
        if last != [piece]:
            made, waiting = set[str](), [piece]
            while waiting:
                part = waiting.pop()
                if part not in made:
                    made.add(part)
                    waiting += self._first.get(part, ())
        return {part for part in made if part in self._pieces.ids}

    def made(self, piece: str, among: Container[str] | None = None) -> tuple[set[str], list[str]]:
        """How the text of a piece is put together alone.

        Args:
            piece: it need not be one of the tokenizer's.
            among: what merges may make on the way, and then not the piece itself; None for all pieces.

        Returns:
            All pieces that there are on the way, and those at the end, in order.
        """
        symbols = list(self._pieces.spelling(piece))
        made = set(symbols)
        while True:
            best = min(
                (
                    each
                    for each in self._candidates(symbols)
                    if among is None or (each[2] in among and each[2] != piece)
                ),
                default=None,
            )
            if best is None:
                return made, symbols
            _, at, new = best
            symbols[at : at + 2] = [new]
            made.add(new)

    def _candidates(self, symbols: list[str]) -> Iterator[tuple[int, int, str]]:
        """The merges that can be made: rank, place and result of each."""
        for at, pair in enumerate(pairwise(symbols)):
            if pair in self._ranks:
                yield self._ranks[pair], at, self._pieces.merged(*pair)


@lru_cache(maxsize=2)
def merges_of(pieces: Pieces) -> Merges:
    """The merges of a tokenizer, which remember what they have put together."""
    return Merges(pieces)


def kept_merges(pieces: Pieces, kept: Iterable[str]) -> list[int]:
    """The places of the merges whose two parts and whose result are all among some pieces."""
    names = set(kept)
    return [place for place, pair in enumerate(pieces.merges) if names.issuperset((*pair, pieces.merged(*pair)))]
