"""Token samples to calibrate and to train on: a user's own text, built-in text, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.artifacts.files import hash_json
from lowrank.calibrate.builtin import builtin_text
from lowrank.calibrate.folds import split_folds
from lowrank.calibrate.mixture import (
    CALIBRATION,
    MOST_TOKENS,
    SHARE,
    TRAINING,
    Mixture,
    builtin_samples,
    builtin_tokens,
    within,
)
from lowrank.calibrate.readable import COSTLY, FEWEST, Reading, pieces_a_byte, reading_of
from lowrank.calibrate.text import line_of, read_samples
from lowrank.calibrate.tokenize import Tokenizer
from lowrank.core.share import percent
from lowrank.errors import CalibrationError

BUILT_IN = "built-in text"
Ids = list[int]


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Which text, and how much of it."""

    path: Path | None
    """None for the built-in text alone."""
    column: str | None = None
    samples: int = 4096
    """Samples of the user's own at most, spread evenly over the file."""
    mixed: bool = False
    """Whether built-in text is added to it."""
    tokens: int = MOST_TOKENS
    """Tokens at most, of the user's own text."""
    mixture: Mixture = CALIBRATION
    """How much built-in text of each style, if it is alone."""

    def to_learn_from(self, samples: int) -> TextSource:
        """The same text, as much of it as training can use."""
        return TextSource(
            path=self.path,
            column=self.column,
            samples=samples,
            mixed=self.mixed,
            tokens=32 * MOST_TOKENS,
            mixture=TRAINING,
        )


@dataclass(frozen=True)
class TextSamples:
    """Token ids of samples."""

    own: list[Ids]
    """Of the user's text, or of the built-in text if there is no other."""
    added: list[Ids]
    """Of the built-in text that is mixed with it."""
    name: str
    notes: tuple[str, ...] = ()

    def folds(self) -> tuple[list[Ids], list[Ids], list[Ids]]:
        """Fit, held-out and report. What is added has the same share of the first two, and none of the third."""
        fit, heldout, report = ([self.own[i] for i in fold] for fold in split_folds(len(self.own)))
        judging = self.added[::9]
        return fit + [ids for i, ids in enumerate(self.added) if i % 9], heldout + judging, report

    def provenance(self) -> dict[str, Any]:
        """What they are, for the record."""
        facts = {"text": self.name, "samples": len(self.own), "tokens": _tokens(self.own)}
        if self.added:
            facts["builtin"] = {"samples": len(self.added), "tokens": _tokens(self.added)}
        return {**facts, "hash": hash_json([self.own, self.added])}


def read_text_samples(tokenizer: Tokenizer, longest: int, source: TextSource) -> TextSamples:
    """The samples of a text, cut to some length, and how well the tokenizer reads it.

    Raises:
        CalibrationError: if the text cannot be read, by us or by the tokenizer.
    """
    if source.path is None:
        return _builtin(tokenizer, longest, source)
    texts = read_samples(source.path, source.column)
    texts = [texts[i] for i in _evenly(len(texts), source.samples)]
    samples = tokenizer.encode(texts, longest, True)
    notes = _remarks(source.path, texts, samples, reading_of(tokenizer, samples))
    ratio = pieces_a_byte(tokenizer, texts) / max(pieces_a_byte(tokenizer, builtin_text("lines")), 1e-9)
    if ratio > COSTLY:
        notes = (
            *notes,
            f"{source.path}: the tokenizer cuts this text into {ratio:.1f} times as many pieces a byte as English, so "
            "it was hardly made for it; give text of the kind that the model was trained on",
        )
    whole = [ids for ids in samples if len(ids) > len(tokenizer.frame)]
    own = within(whole, source.tokens)
    if len(own) < len(whole):
        notes = (
            *notes,
            f"{len(own):,} of {len(whole):,} samples are used: together they have {source.tokens:,} tokens",
        )
    mixed = source.mixed
    if mixed and 0 < ratio < 1 / COSTLY:
        mixed = False
        notes = (
            *notes,
            "no built-in text is mixed with yours: it is English, which the model's tokenizer cuts into "
            f"{1 / ratio:.1f} times as many pieces a byte as yours",
        )
    if not mixed:
        return TextSamples(own, [], str(source.path.resolve()), notes)
    fit, heldout, _ = split_folds(len(own))
    choosing = _tokens([own[i] for i in fit + heldout])
    added = builtin_tokens(tokenizer, longest, round(SHARE / (1 - SHARE) * choosing))
    return _mixed(tokenizer, TextSamples(own, added, str(source.path.resolve()), notes), choosing)


def _mixed(tokenizer: Tokenizer, samples: TextSamples, choosing: int) -> TextSamples:
    """The same with a word on what is added; without it, if the tokenizer was not made for English.

    Args:
        tokenizer: the model's.
        samples: a user's own, and what is added.
        choosing: tokens of the user's own in the fit and the held-out fold.
    """
    if not samples.added:
        return samples
    reading = reading_of(tokenizer, samples.added)
    if reading.is_foreign:
        note = (
            f"no built-in text is mixed with yours: it is English, and {percent(reading.unknown)} of it is unknown to "
            "the model's tokenizer"
        )
        return TextSamples(samples.own, [], samples.name, (*samples.notes, note))
    share = _tokens(samples.added) / (choosing + _tokens(samples.added))
    note = (
        f"calibrated on your {len(samples.own):,} samples and on {len(samples.added):,} built-in ones, which are "
        f"{percent(share)} of the tokens; --calib-only leaves these out"
    )
    return TextSamples(samples.own, samples.added, samples.name, (*samples.notes, note))


def _builtin(tokenizer: Tokenizer, longest: int, source: TextSource) -> TextSamples:
    samples = builtin_samples(tokenizer, longest, source.mixture)
    reading = reading_of(tokenizer, samples)
    known = f"{percent(reading.unknown)} of the built-in text, which is English, is unknown to the model's tokenizer"
    if reading.is_unreadable:
        raise CalibrationError(
            f"the model does not read English: {known}; give text of its kind with --calib FILE, or take no data "
            "with --calib none"
        )
    notes = (f"{known}; text of its kind, with --calib FILE, would serve it better",) if reading.is_foreign else ()
    samples = [samples[i] for i in _evenly(len(samples), source.samples)]
    return TextSamples(within(samples, source.tokens), [], BUILT_IN, notes)


def _remarks(path: Path, texts: Sequence[str], samples: Sequence[Ids], reading: Reading) -> tuple[str, ...]:
    """What a user should know of how their text is read.

    Raises:
        CalibrationError: if it cannot be.
    """

    def where() -> str:
        # Read from the file only where something is to be said.
        text = texts[reading.worst]
        line = line_of(path, text)
        return f"as in line {line}, {_cut(text)!r}" if line else f"as in {_cut(text)!r}"

    advice = "give text in the language and the form that the model was trained on, or --tokenizer if it has another"
    if reading.blank == len(samples):
        raise CalibrationError(f"{path}: the model's tokenizer makes no tokens of the text, {where()}; {advice}")
    if reading.is_unreadable:
        raise CalibrationError(
            f"{path}: {percent(reading.unknown)} of the text is unknown to the model's tokenizer, {where()}; {advice}"
        )
    remarks: list[str] = []
    if reading.is_foreign:
        remarks.append(
            f"{path}: {percent(reading.unknown)} of the text is unknown to the model's tokenizer, {where()}; {advice}"
        )
    elif reading.blank:
        remarks.append(
            f"{path}: of {reading.blank} samples the tokenizer makes no tokens, {where()}; they are left out"
        )
    if reading.pieces < FEWEST:
        remarks.append(
            f"{path}: half of the samples have fewer than {FEWEST} tokens, {where()}; give whole sentences, or name "
            "the column of the text"
        )
    if reading.distinct == 1 < len(samples):
        remarks.append(f"{path}: all {len(samples)} samples are the same to the tokenizer, {where()}; {advice}")
    return tuple(remarks)


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _evenly(count: int, most: int) -> list[int]:
    """So many places at most, spread evenly over all.

    Example:
        >>> _evenly(10, 4)
        [0, 2, 5, 7]
    """
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]


def _tokens(samples: Sequence[Ids]) -> int:
    return sum(map(len, samples))
