"""A folder whose vocabulary was cut is loaded as any other, and all files in it have the same ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import read
from vocabularies import CLASSES, TEXTS, TOKENIZERS, content_of, write_model

from lowrank.backends.vocabulary.counts import tokenizer_of
from lowrank.backends.vocabulary.folder import rewrite_folder
from lowrank.backends.vocabulary.named_ids import named_ids
from lowrank.backends.vocabulary.pieces import read_pieces
from lowrank.backends.vocabulary.rows import cut_rows
from lowrank.errors import UnsupportedModel, VocabularyError


def _cut(source: Path, target: Path, keep: Any = ()) -> tuple[np.ndarray, list[str]]:
    """The folder with its weights, as a finished result would be."""
    import transformers as t

    old_ids, notes = rewrite_folder(source, target, keep)
    model = getattr(t, read(source / "config.json")["architectures"][0]).from_pretrained(source)
    cut_rows(model, old_ids)
    from safetensors.torch import save_model

    save_model(model, str(target / "model.safetensors"), metadata={"format": "pt"})
    return old_ids, notes


@pytest.mark.slow_but("byte_bpe")
@pytest.mark.parametrize("name", CLASSES)
def test_transformers_loads_it_and_computes_the_same(name: str, tmp_path: Path) -> None:
    import transformers as t

    source = write_model(
        tmp_path / "whole", name, decoder_start_token_id=2 + len(read_pieces(content_of(name)).all_ids)
    )
    used = {i for text in TEXTS[:2] for i in tokenizer_of(content_of(name)).encode(text).ids}
    old_ids, notes = _cut(source, tmp_path / "cut", used)
    before, after = (t.AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "cut"))
    whole, cut = (getattr(t, CLASSES[name][0]).from_pretrained(f).eval() for f in (source, tmp_path / "cut"))
    pieces = len(read_pieces(content_of(name)).all_ids)
    # A row that only the config names comes after those of the pieces.
    assert notes == [] and old_ids[-1] == pieces + 2 and len(after) == len(old_ids) - 1
    assert cut.config.decoder_start_token_id == len(old_ids) - 1 and cut.config.vocab_size == len(old_ids)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert old_ids[getattr(cut.config, key)] == getattr(whole.config, key)
    for text in TEXTS[:2]:
        old, new = before(text, return_tensors="pt"), after(text, return_tensors="pt")
        assert np.array_equal(old_ids[new["input_ids"]], old["input_ids"])
        given = {"decoder_input_ids": old["input_ids"]}, {"decoder_input_ids": new["input_ids"]}
        extra = given if whole.config.is_encoder_decoder else ({}, {})
        with torch.no_grad():
            expected = whole(input_ids=old["input_ids"], **extra[0]).logits[..., torch.from_numpy(old_ids)]
            assert torch.allclose(cut(input_ids=new["input_ids"], **extra[1]).logits, expected, atol=1e-5, rtol=1e-5)
    assert after.decode(after(TEXTS[0])["input_ids"]) == before.decode(before(TEXTS[0])["input_ids"])
    assert after.mask_token == "[MASK]" and after("[MASK]")["input_ids"].count(after.mask_token_id) == 1
    assert after(TEXTS[3])["input_ids"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_type_of_tokenizer_is_loaded(name: str, tmp_path: Path) -> None:
    import transformers as t

    old_ids, _ = rewrite_folder(write_model(tmp_path / "whole", name), tmp_path / "cut", range(30, 60))
    before, after = (t.AutoTokenizer.from_pretrained(tmp_path / folder) for folder in ("whole", "cut"))
    assert len(after) == len(old_ids)
    for i in range(len(after)):
        assert after.convert_ids_to_tokens(i) == before.convert_ids_to_tokens(int(old_ids[i]))
    assert {k: str(v) for k, v in after.special_tokens_map.items()} == {
        k: str(v) for k, v in before.special_tokens_map.items()
    }


def test_lists_of_pieces_agree_with_the_tokenizer(tmp_path: Path) -> None:
    """As older versions of transformers save them: vocab.txt, or vocab.json with merges.txt and added_tokens.json."""
    for name in ("wordpiece", "byte_bpe"):
        source, content = write_model(tmp_path / name, name), content_of(name)
        pieces = read_pieces(content)
        if name == "wordpiece":
            (source / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces.names.values()))
        else:
            (source / "vocab.json").write_text(json.dumps(pieces.ids))
            lines = ["#version: 0.2", *map(" ".join, pieces.merges)]
            (source / "merges.txt").write_text("\n".join(lines) + "\n")
            beyond = {piece: i for i, piece in pieces.added.items() if i not in pieces.names}
            (source / "added_tokens.json").write_text(json.dumps(beyond))
        target = tmp_path / f"{name}-cut"
        _, notes = rewrite_folder(source, target, range(270, 330) if name == "byte_bpe" else range(150, 200))
        cut = read_pieces(read(target / "tokenizer.json"))
        assert notes == []
        if name == "wordpiece":
            assert (target / "vocab.txt").read_text().splitlines() == list(cut.names.values())
        else:
            assert read(target / "vocab.json") == cut.ids
            assert (target / "merges.txt").read_text().splitlines() == ["#version: 0.2", *map(" ".join, cut.merges)]
            assert read(target / "added_tokens.json") == {p: i for i, p in cut.added.items() if i not in cut.names}
            assert cut.added[max(cut.added)] == "extraordinary" and max(cut.added) == len(cut.all_ids) - 1


def test_what_cannot_be_written_anew_is_left_out_with_a_note(tmp_path: Path) -> None:
    source = write_model(tmp_path / "whole", "unigram")
    (source / "spiece.model").write_bytes(b"pieces")
    (source / "vocab.txt").write_text("other\npieces\n")
    (source / "README.md").write_text("a model")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    target = tmp_path / "cut"
    _, notes = rewrite_folder(source, target, range(20))
    assert [note.split(" is left out")[0] for note in notes] == ["spiece.model", "vocab.txt"]
    there = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert {"README.md", "1_Pooling/config.json", "config.json", "tokenizer.json", "tokenizer_config.json"} <= there
    assert not there & {"spiece.model", "vocab.txt", "model.safetensors"}


def test_configs_in_configs_and_lists(tmp_path: Path) -> None:
    source = write_model(tmp_path / "whole", "wordpiece")
    config = read(source / "config.json")
    size = config["vocab_size"]
    text = {"vocab_size": size, "eos_token_id": [101, 102], "image_token_index": 40}
    other = {"vocab_size": 9, "pad_token_id": 5}
    config |= {"text_config": text, "vision_config": other, "bos_token_id": size + 3, "sep_token_id": None}
    (source / "config.json").write_text(json.dumps(config))
    lists = {
        "suppress_tokens": [60, 61, 62, -1],
        "begin_suppress_tokens": None,
        "bad_words_ids": [[60], [70, 71], [60, 71]],
        "forced_decoder_ids": [[1, 65], [2, None]],
        "lang_to_id": {"<|de|>": 66},
    }
    (source / "generation_config.json").write_text(json.dumps(lists))
    assert named_ids(config, size) >= {101, 102, 40} and named_ids(lists, size) == {65, 66}
    old_ids, _ = rewrite_folder(source, tmp_path / "cut", [60, 62])
    new_of = {int(old): new for new, old in enumerate(old_ids)}
    cut = read(tmp_path / "cut" / "config.json")
    assert cut["text_config"] == {
        "vocab_size": len(old_ids),
        "eos_token_id": [new_of[101], new_of[102]],
        "image_token_index": new_of[40],
    }
    assert cut["vision_config"] == other and cut["bos_token_id"] == size + 3 and cut["sep_token_id"] is None
    assert read(tmp_path / "cut" / "generation_config.json") == {
        "suppress_tokens": [new_of[i] for i in (60, 61, 62) if i in new_of] + [-1],
        "begin_suppress_tokens": None,
        "bad_words_ids": [[new_of[i] for i in word] for word in ([60], [70, 71], [60, 71]) if set(word) <= set(new_of)],
        "forced_decoder_ids": [[1, new_of[65]], [2, None]],
        "lang_to_id": {"<|de|>": new_of[66]},
    }


def test_ids_that_only_a_class_tells_are_told(tmp_path: Path) -> None:
    """A config may leave out what is usual for its class; with other ids it no longer is."""
    source = write_model(tmp_path / "whole", "unigram")
    config = read(source / "config.json")
    for key in ("pad_token_id", "eos_token_id"):
        config.pop(key, None)
    (source / "config.json").write_text(json.dumps(config))
    old_ids, _ = rewrite_folder(source, tmp_path / "cut", ())
    cut = read(tmp_path / "cut" / "config.json")
    assert {0, 1} <= set(old_ids.tolist())
    assert old_ids[cut.get("eos_token_id", 1)] == 1 and old_ids[cut.get("pad_token_id", 0)] == 0
    assert cut.keys() <= {*config, "pad_token_id", "eos_token_id"}


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    source, target = write_model(tmp_path / "whole", "wordpiece"), tmp_path / "cut"
    with pytest.raises(VocabularyError, match="the model itself"):
        rewrite_folder(source, source, ())
    with pytest.raises(VocabularyError, match="id 99999"):
        rewrite_folder(source, target, [99999])
    config = read(source / "config.json")
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": 20}))
    with pytest.raises(VocabularyError, match="has 20 rows"):
        rewrite_folder(source, target, ())
    (source / "config.json").write_text(json.dumps(config))
    content = read(source / "tokenizer.json")
    misplaced = {**content["added_tokens"][0], "id": 90, "content": "[NEW]"}
    tokens = sorted([*content["added_tokens"], misplaced], key=lambda entry: entry["id"])
    (source / "tokenizer.json").write_text(json.dumps({**content, "added_tokens": tokens}))
    with pytest.raises(UnsupportedModel, match=r"tokenizer.json.*another id"):
        rewrite_folder(source, target, ())
    (source / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"there is no .*tokenizer.json.*save_pretrained"):
        rewrite_folder(source, target, ())
    assert not target.exists() or not list(target.iterdir())


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = write_model(tmp_path / "whole", "wordpiece"), tmp_path / "cut"
    rewrite_folder(source, target, range(40))
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    (source / "README.md").write_text("new")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(Exception, match="No space left"):
        rewrite_folder(source, target, range(80))
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


@pytest.mark.slow
def test_sentence_transformers_loads_it(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    inner = Transformer(str(write_model(tmp_path / "bert", "wordpiece")))
    SentenceTransformer(modules=[inner, Pooling(32)], device="cpu").save(str(tmp_path / "whole"))
    used = {i for text in TEXTS[:3] for i in tokenizer_of(content_of("wordpiece")).encode(text).ids}
    _cut(tmp_path / "whole", tmp_path / "cut", used)
    before, after = (SentenceTransformer(str(tmp_path / f), device="cpu") for f in ("whole", "cut"))
    assert np.allclose(before.encode(TEXTS[:3]), after.encode(TEXTS[:3]), atol=1e-5)
    assert after.encode(TEXTS[3:]).shape == (3, 32)
