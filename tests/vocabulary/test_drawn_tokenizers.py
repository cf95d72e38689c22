"""Laws on drawn tokenizers, which are odder than trained ones: pieces that hide others, ties, merges in any order."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from vocabularies import check_same

from lowrank.backends.vocabulary.counts import spared_ids, tokenizer_of
from lowrank.backends.vocabulary.pieces import read_pieces
from lowrank.backends.vocabulary.tokenizer_file import cut_tokenizer

words = st.text("abcdé", min_size=1, max_size=12)
texts = st.lists(words, min_size=1, max_size=12)


def _as_content(model: Any) -> dict[str, Any]:
    return json.loads(Tokenizer(model).to_str())


@st.composite
def merging(draw: st.DrawFn) -> dict[str, Any]:
    """Merges of any pieces that there are, in an order of its own."""
    prefix, suffix = draw(st.sampled_from([("", ""), ("", "~"), ("#", "")]))
    first = [p + c + s for c in "abc" for p in {"", prefix} for s in {"", suffix}]
    pieces, merges = ["[UNK]", *sorted(first)], list[tuple[str, str]]()
    for _ in range(draw(st.integers(0, 14))):
        left, right = (draw(st.sampled_from(pieces[1:])) for _ in range(2))
        if right.startswith(prefix) and not (suffix and left.endswith(suffix)):
            merges.append((left, right))
            pieces += [made for made in (left + right[len(prefix) :],) if made not in pieces]
    alone = [word for word in draw(st.lists(words, max_size=3)) if word not in pieces]
    pieces += list(dict.fromkeys(alone))
    marks = {"continuing_subword_prefix": prefix} if prefix else {"end_of_word_suffix": suffix} if suffix else {}
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)},
        draw(st.permutations(list(dict.fromkeys(merges)))),
        unk_token="[UNK]",
        fuse_unk=draw(st.booleans()),
        ignore_merges=draw(st.booleans()),
        **marks,
    )
    return _as_content(model)


@st.composite
def scoring(draw: st.DrawFn) -> dict[str, Any]:
    """Scores with ties, and some characters without a piece."""
    pieces = draw(st.lists(st.text("abcdé", min_size=1, max_size=5), min_size=1, max_size=20, unique=True))
    scores = st.sampled_from([-1.0, -2.0, -2.5, -3.0, -12.0, -13.0, -30.0])
    return _as_content(models.Unigram([("[UNK]", 0.0), *((piece, draw(scores)) for piece in pieces)], unk_id=0))


@st.composite
def greedy(draw: st.DrawFn) -> dict[str, Any]:
    """Longest first, where some characters cannot go on with a word."""
    drawn = draw(
        st.lists(st.tuples(st.sampled_from(["", "##"]), st.text("abcdé", min_size=1, max_size=5)), max_size=30)
    )
    pieces = dict.fromkeys(["[UNK]", *(prefix + text for prefix, text in drawn)])
    return _as_content(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))


def _holds(content: dict[str, Any], read: list[str], data: st.DataObject) -> None:
    ids = sorted(read_pieces(content).all_ids)
    some = {i for text in read[: len(read) // 2] for i in tokenizer_of(content).encode(text).ids}
    check_same(content, {*some, *data.draw(st.sets(st.sampled_from(ids)))}, read)
    keep = spared_ids(content, data.draw(st.sets(st.sampled_from(ids))), read)
    before, after = tokenizer_of(content), tokenizer_of(cut_tokenizer(content, keep)[0])
    unknown = after.token_to_id("[UNK]")
    for text in read:
        assert after.encode(text).ids.count(unknown) <= before.encode(text).ids.count(0)


@given(merging(), texts, st.data())
def test_merges(content: dict[str, Any], read: list[str], data: st.DataObject) -> None:
    _holds(content, read, data)


@given(scoring(), texts, st.data())
def test_scores(content: dict[str, Any], read: list[str], data: st.DataObject) -> None:
    _holds(content, read, data)


@given(greedy(), texts, st.data())
def test_longest_first(content: dict[str, Any], read: list[str], data: st.DataObject) -> None:
    _holds(content, read, data)
