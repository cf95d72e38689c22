"""The sets that a compressed model is judged on: data like the user's own, and what it may meet beside that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.inputs import Feed, Signature, batch_size
from lowrank.calibrate.builtin import Style, judging_text
from lowrank.calibrate.causal import TokenScores, token_scores
from lowrank.calibrate.data import Calibration, token_batches
from lowrank.calibrate.masking import MASKED, masked_lines
from lowrank.calibrate.mixture import in_turn
from lowrank.calibrate.readable import reading_of
from lowrank.calibrate.tokenize import open_tokenizer, usual_maximum
from lowrank.core.distance import Array
from lowrank.errors import CalibrationError

SHORT, PASSAGES, TECHNICAL = 200, 110, 110
"""Texts of each set: more than a hundred, of which ten are the nearest."""
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
CHANGED = 100
"""Samples of the own data that are changed."""
SPECTROGRAM = "input_features"
DARKER, NOISE = 0.5, 0.25
"""What of the brightness is left; and the noise, in standard deviations of a sample."""


@dataclass(frozen=True, eq=False)
class JudgingSet:
    """Batches that nothing was chosen or trained by."""

    name: str
    """As it is shown: `your data`, `passages of 256 tokens`."""
    feeds: tuple[Feed, ...]
    about: str = ""
    """What the samples are, in a sentence's words."""


def judging_sets(calibration: Calibration) -> list[JudgingSet]:
    """What a model with data is judged on beside these, by what it reads.

    A model that reads text is judged on short texts, on passages as long as it is used with, and on technical prose,
    where its tokenizer knows their words; any other on its own samples made darker, noisier, shorter or longer.
    """
    backend = calibration.backend
    others: list[JudgingSet] = []
    if signature_of(backend).reads_tokens and backend.tokenizer is not None:
        with suppress(CalibrationError):
            others = list(_of_text(backend))
    return others or changed_sets(backend, calibration.report)


def _of_text(backend: Backend) -> Iterator[JudgingSet]:
    signature, longest = signature_of(backend), usual_maximum(backend)
    assert backend.tokenizer is not None
    tokenizer, scores = open_tokenizer(backend.tokenizer), token_scores(backend)
    kinds: list[tuple[str, Style, int, int, int]] = [
        ("short texts", "lines", SHORT, 1, min(longest, SHORT_TOKENS)),
        (f"passages of {longest} tokens", "prose", PASSAGES, int(WHOLE * longest), longest),
        ("technical prose", "technical", TECHNICAL, 1, min(longest, SHORT_TOKENS)),
    ]
    for name, style, count, least, most in kinds:
        texts = judging_text(style)
        if style == "technical":
            texts = in_turn([_pieces(text) for text in texts])
        lengths = [len(ids) for ids in tokenizer.encode(texts, most, True)]
        lines = [ids for ids in tokenizer.encode(list(_joined(texts, lengths, least)), most, True) if ids]
        if not lines or reading_of(tokenizer, lines).is_foreign:
            continue
        if isinstance(scores, TokenScores):
            count = _enough(count, sum(map(len, lines)) / len(lines), signature, scores)
        lines = masked_lines(lines[:count], backend)
        yield JudgingSet(name, token_batches(lines, signature), f"{len(lines)} texts")


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


def changed_sets(backend: Backend, feeds: Sequence[Feed]) -> list[JudgingSet]:
    """Some samples of a model that reads no text, changed as what it meets may be: pictures darker and noisier, sound
    and other numbers noisier, sequences shorter, sequences of tokens also two in one. What it does not run on is left
    out."""
    signature, some = signature_of(backend), _first(feeds)
    floating = [i for i in signature.inputs if i.is_floating]
    changes: list[tuple[str, Callable[[Feed], Feed | None]]] = []
    if any(len(i.dims) == 4 for i in floating):
        lowest = {i.name: _lowest([feed[i.name] for feed in some]) for i in floating if len(i.dims) == 4}
        changes.append(("darker", lambda feed: _darker(feed, lowest)))
    if floating:
        changes.append(("noisier", lambda feed: _noisier(feed, [i.name for i in floating])))
    if signature.has_sequence or any(i.name == SPECTROGRAM for i in floating):
        changes.append(("shorter", lambda feed: _shorter(feed, signature)))
    if all("sequence" in i.dims and not i.is_floating for i in signature.inputs):
        changes.append(("joined", lambda feed: _two_in_one(feed, signature)))
    sets: list[JudgingSet] = []
    for name, change in changes:
        made = tuple(feed for feed in map(change, some) if feed is not None)
        if made and _runs(backend, made):
            sets.append(JudgingSet(name, made, f"{sum(map(batch_size, made))} samples, {name}"))
    return sets


def _first(feeds: Sequence[Feed]) -> list[Feed]:
    """The first samples of some batches."""
    some, left = list[Feed](), CHANGED
    for feed in feeds:
        if left > 0:
            some.append({name: values[:left] for name, values in feed.items()})
        left -= batch_size(feed)
    return some


def _runs(backend: Backend, feeds: Sequence[Feed]) -> bool:
    try:
        return all(len(backend.run({name: values[:1] for name, values in feed.items()})) for feed in feeds)
    except Exception:
        # Its shapes are its own: what it cannot read is no set.
        return False


def _lowest(batches: Sequence[Array]) -> Array:
    """The smallest number of each channel."""
    return np.min([batch.min((0, 2, 3)) for batch in batches], axis=0)[:, None, None]


def _darker(feed: Feed, lowest: Feed) -> Feed:
    return {n: lowest[n] + DARKER * (v - lowest[n]) if n in lowest else v for n, v in feed.items()}


def _noisier(feed: Feed, names: Sequence[str]) -> Feed:
    rng = np.random.default_rng(0)
    changed = dict(feed)
    for name in names:
        values = feed[name]
        scale = values.reshape(len(values), -1).std(1).reshape(-1, *[1] * (values.ndim - 1))
        changed[name] = (values + NOISE * scale * rng.standard_normal(values.shape)).astype(values.dtype)
    return changed


def _shorter(feed: Feed, signature: Signature) -> Feed:
    """The first half of every sequence; of a spectrogram of fixed length, silence in the place of the other."""
    changed: dict[str, Array] = {}
    for spec in signature.inputs:
        values = feed[spec.name]
        for axis, dim in enumerate(spec.dims):
            if dim == "sequence":
                values = np.take(values, range(-(-values.shape[axis] // 2)), axis)
        if spec.name == SPECTROGRAM and isinstance(spec.dims[-1], int):
            values = values.copy()
            values[..., values.shape[-1] // 2 :] = values.min()
        changed[spec.name] = values
    return changed


def _two_in_one(feed: Feed, signature: Signature) -> Feed | None:
    """Every two samples as one; none if that would be longer than the model reads."""
    pairs, changed = batch_size(feed) // 2, dict[str, Array]()
    for spec in signature.inputs:
        values, axis = feed[spec.name], spec.dims.index("sequence")
        if not pairs or values.ndim != 2 or 2 * values.shape[axis] > signature.max_sequence:
            return None
        joined = np.concatenate([values[: 2 * pairs : 2], values[1 : 2 * pairs : 2]], axis)
        places = np.broadcast_to(np.arange(joined.shape[1], dtype=joined.dtype), joined.shape)
        changed[spec.name] = places.copy() if spec.name == "position_ids" else joined
    return changed
