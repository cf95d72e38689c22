"""How often texts use each piece of a tokenizer, and which pieces they need."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.vocabulary.closure import characters_of, closed, spelling_ids
from lowrank.backends.vocabulary.pieces import Pieces, read_pieces
from lowrank.backends.vocabulary.tokenizer_file import cut_tokenizer
from lowrank.errors import UnsupportedModel, VocabularyError, first_line

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

TOGETHER = 1024
"""Texts that are encoded at once."""


def tokenizer_of(content: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a parsed tokenizer.json, which gives all tokens of a text and no padding.

    Raises:
        UnsupportedModel: if it is none.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(json.dumps(content))
    except Exception as error:
        raise UnsupportedModel(
            f"tokenizers cannot read this tokenizer.json ({first_line(error)}); write it anew with "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count_ids(content: Mapping[str, Any], texts: Iterable[str]) -> NDArray[np.int64]:
    """How often each id stands in some texts, without the tokens that are put around them.

    Args:
        content: a parsed tokenizer.json.
        texts: they are read once, some at a time.

    Returns:
        A count for every id from 0 to the largest.
    """
    counts = np.zeros(max(read_pieces(content).all_ids) + 1, np.int64)
    for encoding in _encoded(tokenizer_of(content), texts):
        np.add.at(counts, np.array(encoding.ids, np.int64), 1)
    return counts


def spared_ids(content: Mapping[str, Any], keep: Iterable[int], texts: Sequence[str]) -> set[int]:
    """What must stay so that nothing is unknown in some texts that was known there.

    That are `keep`, the pieces that spell the characters of the texts, and all pieces of texts that still have more
    unknown tokens than before, as where a longer piece leads greedy reading astray.

    Args:
        content: a parsed tokenizer.json.
        keep: ids that must stay in any case.
        texts: they may be read several times.
    """
    pieces = read_pieces(content)
    tokenizer = tokenizer_of(content)
    used = {int(i) for i in np.flatnonzero(count_ids(content, texts))}
    kept = {*keep, *spelling_ids(pieces, characters_of(pieces, used))}
    while missing := _missing(content, pieces, tokenizer, kept, texts):
        kept |= missing
    return kept


def unread_ids(content: Mapping[str, Any]) -> set[int]:
    """The ids of pieces that no text is read as, such as `[unused7]` in BERT, or pieces in capitals where all is made
    small. To leave them out changes nothing.

    Only told of a WordPiece tokenizer with BERT's pre-tokenizer, which cuts a text the same wherever a character
    stands; of any other the set is empty.

    Args:
        content: a parsed tokenizer.json.
    """
    pieces, tokenizer = read_pieces(content), tokenizer_of(content)
    known = {None, "BertNormalizer"}
    kinds = [(content.get(key) or {}).get("type") for key in ("normalizer", "pre_tokenizer")]
    if pieces.kind != "WordPiece" or kinds[0] not in known or kinds[1] != "BertPreTokenizer":
        return set()
    found: set[int] = set()
    for i, name in pieces.words().items():
        text = pieces.inner(name)
        made = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        if [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(made)] != [text]:
            found.add(i)
    return found


def most_used(
    pieces: Pieces, worth: NDArray[Any], base: Iterable[int], rows: int, unread: Iterable[int] = ()
) -> set[int]:
    """As many ids as fit into some rows, the most used first, and of equally used ones those with small ids, which are
    the more common ones in most tokenizers.

    Args:
        pieces: those of the tokenizer.
        worth: of each id, what `count_ids` gave, or any other number that is larger for what should rather stay.
        base: ids that must stay in any case.
        rows: how many may stay, with all that stay because of others.
        unread: ids that are not worth a row, as `unread_ids` finds them.

    Returns:
        A closed set, which is what `closed` makes of itself.

    Raises:
        VocabularyError: if not even the base fits.
    """
    least = closed(pieces, base)
    if len(least) > rows:
        raise VocabularyError(
            f"{len(least):,} pieces must stay, of {len(pieces.all_ids):,}; {rows:,} rows are too few for them: allow "
            "more, or let fewer languages stay"
        )
    order = sorted(pieces.all_ids - least - set(unread), key=lambda i: (-worth[i] if i < len(worth) else 0, i))
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(closed(pieces, {*least, *order[:middle]})) <= rows else (low, middle - 1)
    return closed(pieces, {*least, *order[:low]})


def _missing(
    content: Mapping[str, Any], pieces: Pieces, tokenizer: Tokenizer, kept: set[int], texts: Sequence[str]
) -> set[int]:
    """Ids of texts in which more is unknown than there was, that are not kept yet."""
    if pieces.unknown is None:
        return set()
    changed, old_ids = cut_tokenizer(content, kept)
    unknown = int(np.searchsorted(old_ids, pieces.unknown))
    found: set[int] = set()
    for before, after in zip(_encoded(tokenizer, texts), _encoded(tokenizer_of(changed), texts), strict=True):
        if after.ids.count(unknown) > before.ids.count(pieces.unknown):
            found.update(before.ids)
    return found - set(old_ids.tolist())


def _encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[Encoding]:
    waiting = iter(texts)
    while part := list(islice(waiting, TOGETHER)):
        yield from tokenizer.encode_batch(part, add_special_tokens=False)
