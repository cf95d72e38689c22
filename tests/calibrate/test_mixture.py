"""The built-in text: how much of each style, at which lengths, and in which share it is mixed with a user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import sentences
from hypothesis import given
from hypothesis import strategies as st

from lowrank.artifacts.files import hash_json
from lowrank.calibrate.builtin import builtin_text, judging_text
from lowrank.calibrate.mixture import CALIBRATION, SHARE, Mixture, builtin_samples, builtin_tokens, within
from lowrank.calibrate.samples import TextSource, read_text_samples
from lowrank.calibrate.tokenize import Tokenizer

LONGEST = 256
WORDS: list[str] = []
PLACES: dict[str, int] = {}


def encode(text: list[str], most: int | None, special: bool) -> list[list[int]]:
    """A word a token, none unknown, between a 0 and a 1."""
    for word in dict.fromkeys(" ".join(text).split()):
        if word not in PLACES:
            PLACES[word] = len(WORDS) + 2
            WORDS.append(word)
    ids = [[PLACES[word] for word in each.split()] for each in text]
    if not special:
        return [row[:most] for row in ids]
    return [[0, *row[: None if most is None else most - 2], 1] for row in ids]


def decoded(ids: list[int]) -> str:
    return " ".join(WORDS[i - 2] for i in ids if i > 1)


TOKENIZER = Tokenizer(Path("words"), encode)


def test_what_judges_is_never_learnt_from() -> None:
    mixture = Mixture(lines=50, sentences=5, prose=40, technical=40)
    samples = builtin_samples(TOKENIZER, LONGEST, mixture)
    assert len(samples) == 135
    lines, pieces = samples[:50], [decoded(ids) for ids in samples[55:]]
    assert [decoded(ids) for ids in lines] == [" ".join(text.split()) for text in builtin_text("lines")[:50]]
    for style, some, step in (("prose", pieces[:40], 2), ("technical", pieces[40:], 1)):
        documents, judging = (
            [" ".join(text.split()) for text in texts(style)]  # type: ignore[arg-type]
            for texts in (builtin_text, judging_text)
        )
        assert all(piece in document for piece, document in zip(some, documents[step - 1 :: step], strict=False))
        assert not set(documents) & set(judging)
    # No sentence stands in a piece, whatever fold either is in.
    assert not any(decoded(ids) in piece for ids in samples[50:55] for piece in pieces)


def test_pieces_have_all_lengths_and_lie_between_special_tokens() -> None:
    samples = builtin_samples(TOKENIZER, LONGEST, CALIBRATION)
    assert len(samples) == CALIBRATION.lines + CALIBRATION.sentences + CALIBRATION.prose + CALIBRATION.technical
    assert all((ids[0], ids[-1]) == (0, 1) for ids in samples)
    lengths = np.array([len(ids) for ids in samples[CALIBRATION.lines + CALIBRATION.sentences :]])
    assert lengths.max() in range(LONGEST - 1, LONGEST + 1)
    counts, _ = np.histogram(lengths, 4, (CALIBRATION.shortest, LONGEST))
    assert counts.min() > 0.8 * counts.mean()


def test_more_of_a_mixture_holds_all_of_less() -> None:
    small = Mixture(lines=30, sentences=4, prose=700, technical=20)
    less, more = ({hash_json(ids) for ids in builtin_samples(TOKENIZER, 64, each)} for each in (small, small.times(2)))
    assert less <= more


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(0, 300))
def test_a_bound_on_tokens_holds_and_is_used(lengths: list[int], bound: int) -> None:
    samples = [[i] * length for i, length in enumerate(lengths)]
    chosen = within(samples, bound)
    total = sum(map(len, chosen))
    assert total <= bound
    assert [ids[0] for ids in chosen] == sorted({ids[0] for ids in chosen})
    taken = {ids[0] for ids in chosen}
    assert all(total + len(ids) > bound for i, ids in enumerate(samples) if i not in taken)


@pytest.mark.parametrize("tokens", [300, 20_000, 150_000])
def test_so_many_tokens_of_the_built_in_text(tokens: int) -> None:
    found = sum(map(len, builtin_tokens(TOKENIZER, 128, tokens)))
    assert 0.95 * tokens <= found <= tokens


@pytest.mark.parametrize("count", [60, 1000])
def test_built_in_text_has_its_share_of_what_chooses_and_none_of_what_is_reported(tmp_path: Path, count: int) -> None:
    path = tmp_path / "own.txt"
    path.write_text("\n".join(f"{i} {text}" for i, text in enumerate(sentences(count))))
    alone = read_text_samples(TOKENIZER, LONGEST, TextSource(path=path))
    mixed = read_text_samples(TOKENIZER, LONGEST, TextSource(path=path, mixed=True))
    assert alone.added == [] and alone.notes == ()
    assert [decoded(ids) for ids in alone.own] == path.read_text().splitlines()
    assert mixed.own == alone.own and mixed.folds()[2] == alone.folds()[2]
    for both, own in zip(mixed.folds()[:2], alone.folds()[:2], strict=True):
        assert both[: len(own)] == own or own[0] in both
        share = 1 - sum(map(len, own)) / sum(map(len, both))
        assert share == pytest.approx(SHARE, abs=0.06 if count > 100 else 0.15)
    assert f"on your {count:,} samples" in mixed.notes[0] and "--calib-only" in mixed.notes[0]
    assert mixed.provenance()["builtin"]["samples"] == len(mixed.added)
    # Nothing that judges is in what chooses.
    fit, heldout, report = ({hash_json(ids) for ids in fold} for fold in mixed.folds())
    assert not fit & heldout and not fit & report
