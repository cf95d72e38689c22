"""Languages are told by their scripts: which characters and pieces stay for them."""

from __future__ import annotations

import pytest
from vocabularies import TEXTS, content_of

from lowrank.backends.vocabulary.closure import byte_alphabet, closed
from lowrank.backends.vocabulary.counts import tokenizer_of
from lowrank.backends.vocabulary.pieces import read_pieces
from lowrank.backends.vocabulary.scripts import LANGUAGES, script_ids, script_of, scripts_of
from lowrank.backends.vocabulary.tokenizer_file import cut_tokenizer
from lowrank.errors import VocabularyError


def test_languages_have_scripts() -> None:
    assert scripts_of(["en", "de", "pt-BR"]) == {"latin"}
    assert scripts_of(["ru", "sr"]) == {"cyrillic", "latin"}
    assert scripts_of(["ja"]) == {"hiragana", "katakana", "cjk"}
    assert scripts_of(["greek", "ZH_tw"]) == {"greek", "cjk"}
    with pytest.raises(VocabularyError, match=r"'tlh' is no language.*\bde\b.*cyrillic.*texts of the language"):
        scripts_of(["en", "tlh"])


@pytest.mark.parametrize(
    ("characters", "script"),
    [
        ("aZßéłａｚ", "latin"),
        ("жЯї", "cyrillic"),
        ("αΩ", "greek"),
        ("ش", "arabic"),
        ("א", "hebrew"),
        ("ひ", "hiragana"),
        ("カｶ", "katakana"),
        ("漢北", "cjk"),
        ("한", "hangul"),
        ("कि", "devanagari"),
        ("ไ", "thai"),
        ("0%!,▁ €\u0301\ufffd\x00µª", ""),
    ],
)
def test_characters_have_scripts(characters: str, script: str) -> None:
    assert {script_of(character) for character in characters} == {script}
    assert not script or script in LANGUAGES


@pytest.mark.parametrize("name", ["wordpiece", "byte_bpe", "suffixed_bpe", "unigram"])
def test_all_pieces_of_a_script_read_its_texts_as_before(name: str) -> None:
    content = content_of(name)
    pieces = read_pieces(content)
    latin = script_ids(pieces, scripts_of(["en"]), whole=True)
    changed, old_ids = cut_tokenizer(content, latin)
    before, after = tokenizer_of(content), tokenizer_of(changed)
    assert len(old_ids) < len(pieces.all_ids)
    for text in (TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[4]):
        assert after.encode(text).tokens == before.encode(text).tokens
    # Cyrillic is left as bytes, or unknown; it is no error.
    assert after.encode(TEXTS[3]).tokens != before.encode(TEXTS[3]).tokens
    left = {c for i in old_ids if i in pieces.words() for c in pieces.inner(pieces.names[i])}
    assert name == "byte_bpe" or not {script_of(c) for c in left} - {"latin", ""}


def test_characters_alone_spell_everything_in_a_script() -> None:
    content = content_of("wordpiece")
    pieces = read_pieces(content)
    every, latin = (script_ids(pieces, scripts, whole=False) for scripts in (None, scripts_of(["de"])))
    assert latin < every and all(len(pieces.inner(pieces.names[i])) == 1 for i in every)
    after = tokenizer_of(cut_tokenizer(content, latin)[0])
    assert "[UNK]" not in after.encode(" ".join((TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[4]))).tokens
    assert "[UNK]" in after.encode(TEXTS[3]).tokens
    assert closed(pieces, latin) == latin | pieces.named


def test_pieces_of_bytes_are_told_by_what_they_stand_for() -> None:
    content = content_of("byte_bpe")
    pieces = read_pieces(content)
    cyrillic = {pieces.names[i] for i in script_ids(pieces, ["cyrillic"], whole=True)}
    read = {token for token in tokenizer_of(content).encode("тексте языке").tokens if token in cyrillic}
    assert read and not any(token.isascii() and token.isalpha() for token in cyrillic)


def test_the_alphabet_of_bytes_is_that_of_tokenizers() -> None:
    from tokenizers import pre_tokenizers

    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é\n ~")
    assert bytes(byte_alphabet()[c] for c in cut[0][0]) == "é\n ~".encode()
