"""The text that a model which reads text is judged on: of other kinds, and as long as it may meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.inputs import Signature
from lowrank.calibrate.batches import token_batches
from lowrank.calibrate.builtin import Style, judging_text
from lowrank.calibrate.causal import TokenScores, token_scores
from lowrank.calibrate.judging_set import JudgingSet
from lowrank.calibrate.masking import MASKED, masked_lines
from lowrank.calibrate.mixture import in_turn
from lowrank.calibrate.readable import reading_of
from lowrank.calibrate.tokenize import open_tokenizer, usual_maximum
from lowrank.core.share import percent

COUNTS = (200, 110, 110)
"""Short texts, passages and texts of technical prose: more than a hundred of each, of which ten are the nearest."""
WHOLE = 0.85
"""A passage has at least this share of the tokens that a model is used with."""
PIECE = 40
"""Words of a piece of technical prose."""
SHORT_TOKENS = 64
"""Of a text that is no passage, at most."""
POSITIONS = 2048
"""That count, about, where a model scores each token: then fewer texts tell as much."""
NUMBERS = 1 << 26
"""Scores of a set, at most."""
FEWEST = 8
"""Texts of a set, at least."""


@dataclass(frozen=True)
class TextSet:
    """Texts of one kind, with their token ids."""

    name: str
    texts: Sequence[str]
    lines: Sequence[list[int]]
    most: int
    """Tokens that a text has at most."""
    left_out: str = ""
    """Why it is not used."""


def sets_of_texts(backend: Backend) -> Iterator[TextSet]:
    """Short texts, passages as long as a model is used with, and technical prose, all that there is of each.

    Raises:
        CalibrationError: if the tokenizer cannot be used.
    """
    longest = usual_maximum(backend)
    assert backend.tokenizer is not None
    tokenizer = open_tokenizer(backend.tokenizer)
    kinds: list[tuple[str, Style, int, int]] = [
        ("short texts", "lines", 1, min(longest, SHORT_TOKENS)),
        (f"passages of {longest} tokens", "prose", int(WHOLE * longest), longest),
        ("technical prose", "technical", 1, min(longest, SHORT_TOKENS)),
    ]
    for name, style, least, most in kinds:
        texts = judging_text(style)
        if style == "technical":
            texts = in_turn([_pieces(text) for text in texts])
        lengths = [len(ids) for ids in tokenizer.encode(texts, most, True)]
        joined = list(_joined(texts, lengths, least))
        pairs = [(text, ids) for text, ids in zip(joined, tokenizer.encode(joined, most, True), strict=True) if ids]
        lines, why = [ids for _, ids in pairs], ""
        reading = reading_of(tokenizer, lines) if lines else None
        if reading is None or reading.is_foreign:
            what = f"{percent(reading.unknown)} of it is unknown to" if reading else "it has too few tokens for"
            why = f"{what} the model's tokenizer"
        yield TextSet(name, [text for text, _ in pairs], lines, most, why)


def text_sets(backend: Backend) -> Iterator[JudgingSet]:
    """Short texts, passages as long as a model is used with, and technical prose; what its tokenizer was not made for
    is left out, with the reason.

    Raises:
        CalibrationError: if the tokenizer cannot be used.
    """
    signature, scores = signature_of(backend), token_scores(backend)
    for of, count in zip(sets_of_texts(backend), COUNTS, strict=True):
        if of.left_out:
            yield JudgingSet(of.name, (), "built-in", left_out=of.left_out)
            continue
        if isinstance(scores, TokenScores):
            count = _enough(count, sum(map(len, of.lines)) / len(of.lines), signature, scores)
        lines = masked_lines(of.lines[:count], backend)
        yield JudgingSet(of.name, token_batches(lines, signature), "built-in", f"{len(lines)} texts")


def _pieces(text: str) -> list[str]:
    """A document in pieces of so many words; what is left at its end is left out."""
    words = text.split()
    return [" ".join(words[i : i + PIECE]) for i in range(0, len(words) - PIECE + 1, PIECE)]


def _joined(texts: Sequence[str], lengths: Sequence[int], least: int) -> Iterator[str]:
    """Texts, as many of them joined as it takes to have so many tokens."""
    parts, total = list[str](), 0
    for text, length in zip(texts, lengths, strict=True):
        parts, total = [*parts, text], total + length
        if total >= least:
            yield " ".join(parts)
            parts, total = [], 0


def _enough(count: int, tokens: float, signature: Signature, scores: TokenScores) -> int:
    """How many texts are run of a model that scores each token: fewer, since each of its scores is a sample."""
    counted = max(1.0, tokens * (MASKED if signature.mask_token is not None else 1))
    return int(max(FEWEST, min(count, POSITIONS / counted, NUMBERS / (counted * scores.classes))))
