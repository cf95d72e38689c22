"""What is read in the place of a piece that is left out."""

from __future__ import annotations

import pytest
from vocabularies import TEXTS, content_of

from lowrank.backends.vocabulary.closure import closed
from lowrank.backends.vocabulary.counts import count_ids, most_used, tokenizer_of
from lowrank.backends.vocabulary.pieces import read_pieces
from lowrank.backends.vocabulary.tokenizer_file import cut_tokenizer
from tools.respelling import respellings


@pytest.mark.parametrize("name", ["wordpiece", "byte_bpe", "suffixed_bpe", "prefixed_bpe", "unigram"])
def test_it_is_what_the_new_tokenizer_reads(name: str) -> None:
    content = content_of(name)
    pieces, before = read_pieces(content), tokenizer_of(content)
    counts = count_ids(content, TEXTS)
    least = len(closed(pieces, ()))
    kept = most_used(pieces, counts, (), (least + len(pieces.all_ids)) // 2)
    changed, old_ids = cut_tokenizer(content, kept)
    after, found = tokenizer_of(changed), respellings(pieces, kept)
    read = 0
    for i, parts in found.items():
        assert i not in parts and len(parts) > 1 and kept.issuperset(parts)
        text = before.decode([i])
        if i not in kept and before.encode(text, add_special_tokens=False).ids == [i]:
            read += 1
            assert tuple(old_ids[after.encode(text, add_special_tokens=False).ids].tolist()) == parts
    assert read > 5
    assert not {i for i in found if len(pieces.inner(pieces.names[i])) == 1}


def test_a_piece_is_spelled_without_itself() -> None:
    pieces = read_pieces(content_of("wordpiece"))
    found = respellings(pieces, pieces.all_ids)
    assert len(found) > 20
    for i, parts in found.items():
        texts = [pieces.names[part] for part in parts]
        assert texts[0].startswith("##") == pieces.names[i].startswith("##")
        assert all(text.startswith("##") for text in texts[1:])
        assert "".join(pieces.inner(text) for text in texts) == pieces.inner(pieces.names[i])
    assert respellings(read_pieces(content_of("wordlevel")), range(60)) == {}
