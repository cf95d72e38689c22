"""A tokenizer with fewer pieces reads what it can still read as it did, and reads everything else too."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from vocabularies import SPECIAL, TEXTS, TOKENIZERS, WORDS, check_same, content_of

from lowrank.backends.vocabulary.closure import closed, spelling_ids
from lowrank.backends.vocabulary.counts import count_ids, most_used, spared_ids, tokenizer_of, unread_ids
from lowrank.backends.vocabulary.pieces import read_pieces
from lowrank.backends.vocabulary.tokenizer_file import cut_tokenizer
from lowrank.errors import UnsupportedModel, VocabularyError

content = cache(content_of)
every_type = pytest.mark.parametrize("name", TOKENIZERS)
letters = st.text("abcdeflnorstwßéяжт 東京xq,!</>_#▁\u0301\U0001f600", max_size=30)
texts = st.one_of(
    letters,
    st.lists(st.sampled_from([*WORDS, *SPECIAL, "extraordinary"]), max_size=8).map(" ".join),
    st.text(max_size=12),
)


@pytest.mark.slow_but("wordpiece", "byte_bpe", "unigram")
@every_type
@given(data=st.data())
def test_texts_whose_tokens_all_stay_are_read_as_before(name: str, data: st.DataObject) -> None:
    ids = sorted(read_pieces(content(name)).all_ids)
    read = data.draw(st.lists(texts, min_size=1, max_size=8))
    chosen = data.draw(st.sampled_from(read))
    kept = tokenizer_of(content(name)).encode(chosen).ids
    keep = {*kept, *data.draw(st.sets(st.sampled_from(ids), max_size=60))}
    check_same(content(name), keep, read)


@every_type
def test_what_is_read_with_kept_pieces_is_really_the_same(name: str) -> None:
    tokenizer = tokenizer_of(content(name))
    for chosen in (WORDS[:20], WORDS[20:], WORDS[::3]):
        keep = {i for word in chosen for i in tokenizer.encode(word).ids}
        assert check_same(content(name), keep, [*chosen, *TEXTS]) >= len(chosen)


@every_type
def test_all_pieces_give_the_same_file(name: str) -> None:
    whole = content(name)
    changed, old_ids = cut_tokenizer(whole, read_pieces(whole).all_ids)
    assert np.array_equal(old_ids, np.arange(len(old_ids)))
    assert changed == whole


@every_type
def test_nothing_is_left_but_what_must_stay(name: str) -> None:
    changed, old_ids = cut_tokenizer(content(name), ())
    pieces = read_pieces(content(name))
    assert set(old_ids.tolist()) == closed(pieces, ()) == closed(pieces, closed(pieces, ()))
    tokenizer = tokenizer_of(changed)
    for token in SPECIAL:
        assert tokenizer.token_to_id(token) is not None
    assert tokenizer.encode("[MASK]").tokens.count("[MASK]") == 1
    framed = tokenizer.encode("")
    assert framed.tokens == ["[CLS]", "[SEP]"] and [tokenizer.id_to_token(i) for i in framed.ids] == framed.tokens
    assert tokenizer_of(content(name)).token_to_id("[PAD]") == content(name)["padding"]["pad_id"]
    assert tokenizer.token_to_id("[PAD]") == changed["padding"]["pad_id"]


@every_type
def test_new_ids_keep_the_order_and_nothing_given_is_changed(name: str) -> None:
    before = json.dumps(content(name))
    _, old_ids = cut_tokenizer(content(name), range(30, 60))
    assert (np.diff(old_ids) > 0).all() and set(range(30, 60)) <= set(old_ids.tolist())
    assert json.dumps(content(name)) == before


@every_type
def test_what_was_known_in_texts_stays_known(name: str) -> None:
    """With as few rows as can be, and however the pieces were chosen."""
    keep = spared_ids(content(name), (), TEXTS)
    changed, _ = cut_tokenizer(content(name), keep)
    before, after = tokenizer_of(content(name)), tokenizer_of(changed)
    for text in [*TEXTS, *WORDS]:
        assert after.encode(text).tokens.count("[UNK]") <= before.encode(text).tokens.count("[UNK]")
    if name != "wordlevel":
        assert len(keep) < len(read_pieces(content(name)).all_ids)


@every_type
def test_the_most_used_pieces_fit(name: str) -> None:
    pieces = read_pieces(content(name))
    counts = count_ids(content(name), TEXTS[:2])
    assert counts.sum() == sum(len(tokenizer_of(content(name)).encode(t, add_special_tokens=False)) for t in TEXTS[:2])
    least = len(closed(pieces, ()))
    sizes = []
    for rows in (least, least + 20, len(pieces.all_ids)):
        chosen = most_used(pieces, counts, (), rows)
        sizes.append(len(chosen))
        assert len(chosen) <= rows and chosen == closed(pieces, chosen)
    assert sizes == sorted(sizes) and sizes[-1] == len(pieces.all_ids)
    with pytest.raises(VocabularyError, match=r"too few.*allow more"):
        most_used(pieces, counts, (), least - 1)


@every_type
def test_pieces_that_no_text_is_read_as_are_told(name: str) -> None:
    whole = content_of(name)
    if name != "wordpiece":
        assert unread_ids(whole) == set()
        return
    vocab = whole["model"]["vocab"]
    first = len(vocab)
    for piece in ("[unused1]", "Fox", "##ing!", "caf\u00e9", "\u4eac\u90fd"):
        vocab[piece] = len(vocab)
    known = {i for text in (*TEXTS, *WORDS) for i in tokenizer_of(whole).encode(text).ids}
    unread = unread_ids(whole)
    assert unread >= set(range(first, len(vocab))) and not unread & known
    changed, _ = cut_tokenizer(whole, read_pieces(whole).all_ids - unread)
    before, after = tokenizer_of(whole), tokenizer_of(changed)
    for text in (*TEXTS, "[unused1] Fox CAF\u00c9 caf\u00e9 jumping! \u4eac\u90fd"):
        assert after.encode(text).tokens == before.encode(text).tokens
    pieces = read_pieces(whole)
    chosen = most_used(pieces, count_ids(whole, TEXTS), (), len(vocab), unread)
    assert not chosen & unread


def test_every_part_of_a_merged_piece_stays() -> None:
    """The parts along the merges that are really taken: `ab` + `c` goes before `bc`, though both would make `abc`."""
    vocab = {piece: i for i, piece in enumerate(["a", "b", "c", "d", "ab", "bc", "abc", "abcd", "[UNK]"])}
    merges = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c"), ("abc", "d")]
    whole = json.loads(Tokenizer(models.BPE(vocab, merges, unk_token="[UNK]")).to_str())
    pieces = read_pieces(whole)
    kept = {pieces.names[i] for i in closed(pieces, [vocab["abcd"]])}
    assert kept == {"a", "b", "c", "d", "ab", "abc", "abcd", "[UNK]"}
    changed, _ = cut_tokenizer(whole, [vocab["abcd"]])
    assert changed["model"]["merges"] == [["a", "b"], ["ab", "c"], ["abc", "d"]]
    assert tokenizer_of(changed).encode("abcdbc").tokens == ["abcd", "b", "c"]


def test_merges_as_lines_stay_lines() -> None:
    whole = content_of("byte_bpe")
    whole["model"]["merges"] = [" ".join(merge) for merge in whole["model"]["merges"]]
    changed, old_ids = cut_tokenizer(whole, range(260, 300))
    assert all(isinstance(merge, str) for merge in changed["model"]["merges"])
    same, as_pairs = cut_tokenizer(content("byte_bpe"), range(260, 300))
    assert np.array_equal(old_ids, as_pairs)
    assert tokenizer_of(same).encode(TEXTS[0]).ids == tokenizer_of(changed).encode(TEXTS[0]).ids


def test_a_whole_word_that_no_merges_make_stays_whole() -> None:
    """As Llama 3 reads: a word that is a piece is one token, whatever the merges say."""
    vocab = {piece: i for i, piece in enumerate(["a", "b", "c", "ab", "abc", "cab", "[UNK]"])}
    whole = json.loads(
        Tokenizer(models.BPE(vocab, [("a", "b"), ("c", "ab")], unk_token="[UNK]", ignore_merges=True)).to_str()
    )
    assert check_same(whole, [vocab["abc"], vocab["cab"]], ["abc", "cab", "ab", "abcab", "ba"]) == 5


def test_what_the_file_names_may_be_read_in_words_too() -> None:
    """An added token that stands for whole words alone, and one that is also the padding."""
    vocab = {piece: i for i, piece in enumerate(["a", "b", "c", "ab", "bc", "abc", "ca", "[UNK]"])}
    made = Tokenizer(models.BPE(vocab, [("a", "b"), ("c", "a"), ("ab", "c")], unk_token="[UNK]"))
    made.add_tokens([AddedToken("abc", single_word=True)])
    made.enable_padding(pad_id=vocab["ca"], pad_token="ca")
    whole = json.loads(made.to_str())
    assert tokenizer_of(whole).encode("abcabc").tokens == ["abc", "abc"]
    assert check_same(whole, (), ["abc", "abcabc", "caca", "cabc", "ababc", ""]) == 6


def test_pieces_made_of_bytes_keep_their_parts() -> None:
    names = ["[UNK]", "<0xC3>", "<0xA9>", "<0xC3><0xA9>", "e", "<0xC3><0xA9>e"]
    vocab = {piece: i for i, piece in enumerate(names)}
    merges = [("<0xC3>", "<0xA9>"), ("<0xC3><0xA9>", "e")]
    whole = json.loads(Tokenizer(models.BPE(vocab, merges, unk_token="[UNK]", byte_fallback=True)).to_str())
    assert check_same(whole, [5], ["ée", "é", "e"]) == 3


def test_what_is_unknown_weighs_as_before() -> None:
    """A reading with something unknown is judged by the lowest score of all pieces, so a piece with it stays: else
    `q` unknown and then `aqb` would be better than `qa` and `qb`."""
    scored = [("[UNK]", 0.0), ("qa", -20.0), ("qb", -20.0), ("aqb", -1.0), ("a", -3.0), ("b", -3.0), ("z", -60.0)]
    whole = json.loads(Tokenizer(models.Unigram([*scored, ("y", -60.0)], unk_id=0)).to_str())
    assert tokenizer_of(whole).encode("qaqb").tokens == ["qa", "qb"]
    assert check_same(whole, [1, 2, 3], ["qaqb", "aqb", "q", "qq", "ab"]) == 5
    changed, _ = cut_tokenizer(whole, [1, 2, 3])
    assert [name for name, _ in changed["model"]["vocab"]] == [name for name, _ in scored]
    assert cut_tokenizer(whole, [1, 2, 3, 7])[1].tolist() == [0, 1, 2, 3, 4, 5, 7]


def test_a_character_that_only_longer_pieces_have_keeps_them() -> None:
    vocab = {piece: i for i, piece in enumerate(["[UNK]", "a", "##a", "b", "##b", "##bé", "##é́", "ba", "##aé"])}
    whole = json.loads(Tokenizer(models.WordPiece(vocab, unk_token="[UNK]")).to_str())
    pieces = read_pieces(whole)
    assert spelling_ids(pieces, "ab") == {1, 2, 3, 4}
    assert spelling_ids(pieces, "abé") == {1, 2, 3, 4, 5, 8}
    keep = spared_ids(whole, (), ["abé"])
    assert "[UNK]" not in tokenizer_of(cut_tokenizer(whole, keep)[0]).encode("abé").tokens


def test_pieces_that_greedy_reading_needs_come_back() -> None:
    """Without `abc` the longest beginning is `ab`; then `##cd` is read, and nothing goes on from there."""
    names = ["[UNK]", "a", "##b", "##c", "##d", "ab", "abc", "##cd", "##d\u00e9"]
    whole = json.loads(Tokenizer(models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]")).to_str())
    assert tokenizer_of(whole).encode("abcd\u00e9").tokens == ["abc", "##d\u00e9"]
    base, text = {names.index("ab"), names.index("##cd")}, "abcd\u00e9"
    kept = closed(read_pieces(whole), {*base, names.index("##d\u00e9")})
    assert tokenizer_of(cut_tokenizer(whole, kept)[0]).encode(text).tokens == ["[UNK]"]
    assert names.index("abc") in spared_ids(whole, base, [text])


def _broken(**changes: Any) -> dict[str, Any]:
    return {**content("unigram"), **changes}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no tokenizer.json"),
        ({"model": []}, "no tokenizer.json"),
        (_broken(model={"type": "Morphemes", "vocab": {}}), "'Morphemes'.*keep the vocabulary whole"),
        (_broken(model={"type": "WordLevel", "vocab": {}}), "no pieces"),
        (_broken(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}), "nothing|no piece for"),
        (_broken(model={**content("unigram")["model"], "unk_id": None}), "no piece for what is unknown"),
        (_broken(post_processor={"type": "Odd", "ids": [1]}), "'Odd'"),
    ],
)
def test_what_cannot_be_cut_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        cut_tokenizer(given, ())


def test_an_id_that_is_none_is_refused() -> None:
    with pytest.raises(VocabularyError, match=r"the id 9999 should stay.*take the"):
        cut_tokenizer(content("unigram"), [3, 9999])


def test_files_of_old_versions_tell_no_type() -> None:
    for name in TOKENIZERS:
        whole = content(name)
        old = {**whole, "model": {key: value for key, value in whole["model"].items() if key != "type"}}
        assert read_pieces(old).kind == read_pieces(whole).kind
