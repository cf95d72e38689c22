"""The built-in text that a model which reads text is calibrated on: how much there is of each style, and how long.

All numbers of it stand here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from math import ceil

from lowrank.calibrate.builtin import builtin_text
from lowrank.calibrate.tokenize import Tokenizer

GOLDEN = 0.6180339887498949
"""Multiples of it, without their whole part, fill the interval from 0 to 1 evenly, however many there are."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """How many samples of each style there are, if the text has so many. A calibration takes some, spread evenly."""

    lines: int = 4000
    """Short examples and definitions."""
    sentences: int = 1200
    """Sentences of documents."""
    prose: int = 60
    """Pieces of documents."""
    technical: int = 30
    """Pieces of manuals of software."""
    shortest: int = 16
    """Tokens of the shortest piece; from there to the model's usual maximum all lengths are equally frequent."""

    def times(self, factor: int) -> Mixture:
        """The same mixture of more samples."""
        counts = (self.lines, self.sentences, self.prose, self.technical)
        return Mixture(*(count * factor for count in counts), shortest=self.shortest)


CALIBRATION = Mixture()
"""What a model is calibrated on without any data of the user's."""
TRAINING = Mixture(lines=9000, sentences=7200, prose=800, technical=400)
"""What it is healed on without any: all lines, and more of what is long."""
BESIDE = Mixture(lines=800, sentences=0, prose=80, technical=40)
"""What is mixed with a user's own text, in these proportions: more of what most users' text lacks, which is length."""
SHARE = 0.35
"""The share of the built-in text among all tokens, where it is mixed with a user's own."""
MOST_TOKENS = 1 << 18
"""Tokens of all samples of a calibration: of more, some samples are taken, evenly spread."""
SENTENCE = (30, 200)
"""Characters of a sentence that is taken: shorter ones are headings, longer ones lists."""


def builtin_samples(tokenizer: Tokenizer, longest: int, mixture: Mixture) -> list[list[int]]:
    """Token ids of the built-in text. More of a mixture has all samples that less of it has.

    Args:
        tokenizer: the model's.
        longest: tokens of a sample at most.
        mixture: how many samples of each style.
    """
    texts = [
        *builtin_text("lines")[: mixture.lines],
        # Of other documents than the pieces, so that none of them stands in one of those.
        *_sentences(builtin_text("prose")[::2])[: mixture.sentences],
        *_pieces(tokenizer, builtin_text("prose")[1::2], longest, mixture.prose, mixture.shortest),
        *_pieces(tokenizer, builtin_text("technical"), longest, mixture.technical, mixture.shortest),
    ]
    return [ids for ids in tokenizer.encode(texts, longest, True) if ids]


def sentences_of(text: str) -> list[str]:
    """The sentences of a text: what ends in a mark before a capital letter.

    Example:
        >>> sentences_of("It is so. Is it? Yes, e.g. here.")
        ['It is so.', 'Is it?', 'Yes, e.g. here.']
    """
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"])", text)


def _sentences(documents: Sequence[str]) -> list[str]:
    """The first sentence of each document before the second of any."""
    found = dict.fromkeys(in_turn([sentences_of(text) for text in documents]))
    return [text for text in found if SENTENCE[0] < len(text) < SENTENCE[1]]


def _pieces(tokenizer: Tokenizer, documents: Sequence[str], longest: int, count: int, shortest: int) -> list[str]:
    """So many pieces of documents, the first of each before the second of any.

    Where a document is cut depends on nothing but its place, the tokenizer and the lengths.
    """
    documents = documents[:count]
    framed = len(tokenizer.frame)
    cut: list[list[str]] = []
    for place, (text, ids) in enumerate(zip(documents, tokenizer.encode(list(documents), None, False), strict=True)):
        words, start = text.split(), 0
        each = len(words) / max(1, len(ids))
        cut.append([])
        while start < len(words):
            at = (place + len(cut[-1]) * len(documents)) * GOLDEN % 1
            end = start + max(1, ceil((min(shortest, longest) * (1 - at) + longest * at - framed) * each))
            cut[-1].append(" ".join(words[start:end]))
            start = end
    return in_turn(cut)[:count]


def in_turn(parts: Sequence[Sequence[str]]) -> list[str]:
    """The first part of each text, then the second of each that has one, and so on.

    Example:
        >>> in_turn([["a", "b"], ["c"], ["d", "e"]])
        ['a', 'c', 'd', 'b', 'e']
    """
    return [part for part in chain.from_iterable(zip_longest(*parts)) if part is not None]


def spread_over(count: int) -> list[int]:
    """All numbers below `count` in an order whose beginnings are spread evenly over them.

    Example:
        >>> spread_over(6)
        [0, 5, 2, 4, 1, 3]
    """
    return sorted(range(count), key=lambda i: i * GOLDEN % 1)


def within(samples: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """Samples of so many tokens at most in all, evenly spread over those that there are, in their order."""
    chosen: list[int] = []
    for i in spread_over(len(samples)):
        if len(samples[i]) <= tokens:
            chosen.append(i)
            tokens -= len(samples[i])
    return [samples[i] for i in sorted(chosen)]


def builtin_tokens(tokenizer: Tokenizer, longest: int, tokens: int) -> list[list[int]]:
    """Samples of the built-in text of so many tokens in all, or of all that there are."""
    samples = builtin_samples(tokenizer, longest, BESIDE)
    there = sum(map(len, samples))
    if tokens > there:
        samples = builtin_samples(tokenizer, longest, BESIDE.times(ceil(tokens / max(1, there))))
    return within(samples, tokens)
