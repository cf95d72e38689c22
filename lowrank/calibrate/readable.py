"""Whether a model's tokenizer can read a text: of what it does not know nothing can be learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowrank.calibrate.tokenize import Tokenizer

SOME = 0.2
"""With a larger share of unknown pieces a text is used, and the user is warned."""
MOST = 0.8
"""With a larger share it is refused."""
COSTLY = 2.0
"""Text that takes so many times the pieces a byte of other text is hardly what a tokenizer was made for."""
SOME_TEXTS = 64
FEWEST = 3
"""With fewer pieces in half of the samples the user is warned."""


@dataclass(frozen=True)
class Reading:
    """What a tokenizer makes of some samples, without the tokens that it puts before and after each."""

    unknown: float
    """The share of unknown pieces, or that of samples without any piece, whichever is larger."""
    pieces: float
    """The median of the number of pieces."""
    blank: int
    """Samples without any piece."""
    distinct: int
    """Samples that differ from one another."""
    worst: int
    """The place of the first sample that is unknown for more than `SOME`, or else has too few pieces; 0 if none is."""

    @property
    def is_unreadable(self) -> bool:
        """Whether nothing can be learnt from it."""
        return self.unknown > MOST

    @property
    def is_foreign(self) -> bool:
        """Whether the tokenizer was not made for it."""
        return self.unknown > SOME


def reading_of(tokenizer: Tokenizer, samples: Sequence[Sequence[int]]) -> Reading:
    """What a tokenizer made of some samples.

    Args:
        tokenizer: the model's.
        samples: their token ids, at least one sample.
    """
    frame, unknown = tokenizer.frame, tokenizer.unknown
    pieces = np.array([max(0, len(ids) - len(frame)) for ids in samples])
    strange = np.zeros_like(pieces)
    if unknown is not None:
        strange = np.array([ids.count(unknown) for ids in samples]) - frame.count(unknown)
    blank = int((pieces == 0).sum())
    odd = np.flatnonzero(strange > SOME * pieces)
    short = np.flatnonzero(pieces < FEWEST)
    return Reading(
        unknown=max(float(strange.sum()) / max(1, int(pieces.sum())), blank / len(samples)),
        pieces=float(np.median(pieces)),
        blank=blank,
        distinct=len({tuple(ids) for ids in samples}),
        worst=int(next((places[0] for places in (odd, short) if len(places)), 0)),
    )


def pieces_a_byte(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """How many pieces a tokenizer makes of a byte of some texts.

    One that works on bytes knows every text, and cuts what it was not made for into many pieces.
    """
    some = list(texts[:SOME_TEXTS])
    return sum(map(len, tokenizer.encode(some, None, False))) / max(1, sum(len(text.encode()) for text in some))
