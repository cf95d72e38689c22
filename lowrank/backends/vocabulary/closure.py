"""Which pieces must stay beside those that are wanted, so that every text is still read, and read the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from lowrank.backends.vocabulary.merges import merges_of
from lowrank.backends.vocabulary.pieces import BYTE_PIECE, Pieces
from lowrank.errors import VocabularyError


def closed(pieces: Pieces, keep: Iterable[int]) -> set[int]:
    """The ids that must stay if some must.

    Beside `keep`: what the tokenizer's file names itself (added tokens, templates, padding, unknown), pieces of single
    bytes, the pieces of one character that spell a kept piece at any place in a word, and for BPE the parts that a
    kept piece is merged from. Then a text whose tokens are all in `keep` has the same tokens as before, and any other
    text is spelled by what is left.

    Args:
        pieces: those of a tokenizer.
        keep: ids that are wanted.

    Raises:
        VocabularyError: if an id is none of the tokenizer's.
    """
    kept = set(keep)
    strange = min(kept - pieces.all_ids, default=None)
    if strange is not None:
        raise VocabularyError(
            f"the id {strange} should stay, but it is none of the {len(pieces.all_ids):,} of the tokenizer; take the "
            "ids from the tokenizer that belongs to the model"
        )
    kept |= pieces.named | _bytes(pieces)
    if pieces.kind == "Unigram":
        kept.add(_least(pieces, kept))
    words = pieces.words()
    kept |= spelling_ids(pieces, {c for i in kept & words.keys() for c in pieces.inner(words[i])})
    if pieces.kind == "BPE":
        merges = merges_of(pieces)
        # An added token may be read as part of a word too, where it stands for whole words alone.
        kept |= {pieces.ids[part] for i in kept & pieces.names.keys() for part in merges.parts(pieces.names[i])}
    return kept


def spelling_ids(pieces: Pieces, characters: Iterable[str]) -> set[int]:
    """The ids that words of some characters need: the pieces of one character, and those of several characters that
    no pieces of one character spell. None for whole words, which are not spelled.

    Args:
        pieces: those of a tokenizer.
        characters: as they stand in the pieces, so bytes where characters stand for those.

    Example:
        >>> sorted(pieces.names[i] for i in spelling_ids(pieces, "a"))
        ['##a', 'a']
    """
    if pieces.kind == "WordLevel":
        return set()
    known = set(characters)
    found = {i for character in known for i in pieces.forms(character)}
    for i, name in pieces.words().items():
        if known.issuperset(pieces.inner(name)) and any(part not in pieces.ids for part in pieces.spelling(name)):
            found.add(i)
    return found


def characters_of(pieces: Pieces, ids: Iterable[int]) -> set[str]:
    """The characters of some pieces, to be given to `spelling_ids`."""
    words = pieces.words()
    return {character for i in ids if i in words for character in pieces.inner(words[i])}


def _bytes(pieces: Pieces) -> set[int]:
    """Pieces of one byte, of which every text can be put together."""
    found = {i for i, name in pieces.names.items() if BYTE_PIECE.fullmatch(name)}
    characters = byte_alphabet() if pieces.is_byte_level else ()
    return found | {i for character in characters for i in pieces.forms(character)}


@cache
def byte_alphabet() -> Mapping[str, int]:
    """The characters that stand for bytes in a byte-level tokenizer, and their bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _least(pieces: Pieces, kept: set[int]) -> int:
    """A piece with the lowest score: what is unknown is given a score by it, which decides between readings."""
    least = min(pieces.scores)
    lowest = (i for i, score in enumerate(pieces.scores) if score == least)
    return min(lowest, key=lambda i: (i not in kept, len(pieces.names[i])))
