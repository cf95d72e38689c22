"""Small tokenizers of every type, trained on a few sentences, and what must hold of one with fewer pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import WIDTHS
from builders import shape_spectra_
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lowrank.backends.vocabulary.counts import tokenizer_of
from lowrank.backends.vocabulary.tokenizer_file import cut_tokenizer

TEXTS = [
    "the quick brown fox jumps over the lazy dog, and the dog sleeps on",
    "lower and lowest are words of which the lowering of lows is made; newer, newest, widest",
    "Straßen und Häuser stehen über den Flüssen; der Fuchs schläft",
    "любой текст на русском языке тоже есть, и слова повторяются в тексте",
    "naïve café déjà-vu 2024 12 %",
    "日本語の文 東京 北京",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = sorted({word for text in TEXTS for word in text.split()})


def _framed(tokenizer: Tokenizer, kind: str = "template") -> Tokenizer:
    first, last = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    if kind == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", last), ("[CLS]", first))
    elif kind == "bert":
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", last), ("[CLS]", first))
    else:
        template = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", first), ("[SEP]", last)]
        )
        ends = [processors.ByteLevel(trim_offsets=False), template] if kind == "sequence" else None
        tokenizer.post_processor = processors.Sequence(ends) if ends else template
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
    return tokenizer


def wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    # Added tokens stand between the pieces, as in BERT.
    made.train_from_iterator(
        TEXTS * 3, trainers.WordPieceTrainer(vocab_size=330, special_tokens=SPECIAL[:1], show_progress=False)
    )
    content = json.loads(made.to_str())
    vocab = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    vocab[100:100] = SPECIAL[1:]
    made.model = models.WordPiece({piece: i for i, piece in enumerate(vocab)}, unk_token="[UNK]")
    made.add_special_tokens(SPECIAL)
    return _framed(made)


def byte_bpe() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    made.add_special_tokens(SPECIAL)
    made.add_tokens(["extraordinary"])
    return _framed(made, "roberta")


def suffixed_bpe() -> Tokenizer:
    """As CLIP's: what ends a word is marked."""
    made = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>", fuse_unk=True))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return _framed(made, "bert")


def prefixed_bpe() -> Tokenizer:
    """What goes on with a word is marked."""
    made = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, continuing_subword_prefix="##", show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return _framed(made)


def fallback_bpe() -> Tokenizer:
    """As Llama's: characters without a piece are read as bytes, and old files have merges as lines."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(models.BPE(unk_token="[UNK]", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=620, special_tokens=[*SPECIAL, *bytes_], limit_alphabet=60, show_progress=False
    )
    made.train_from_iterator([text.replace(" ", " ") for text in TEXTS * 3], trainer)
    content = json.loads(made.to_str())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] in SPECIAL]
    return _framed(Tokenizer.from_str(json.dumps(content)))


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=250, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    made.train_from_iterator(TEXTS * 3, trainer)
    return _framed(made, "sequence")


def fallback_unigram() -> Tokenizer:
    """Characters without a piece are read as bytes."""
    content = json.loads(unigram().to_str())
    vocab = content["model"]["vocab"]
    # Some characters lose their piece, so that their bytes are needed.
    vocab = [entry for entry in vocab if entry[0] not in {"я", "é", "北"}]
    vocab[5:5] = [[f"<0x{byte:02X}>", 0.0] for byte in range(256)]
    content["model"] |= {"vocab": vocab, "byte_fallback": True}
    return Tokenizer.from_str(json.dumps(content))


def wordlevel() -> Tokenizer:
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return _framed(made)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": wordpiece,
    "byte_bpe": byte_bpe,
    "suffixed_bpe": suffixed_bpe,
    "prefixed_bpe": prefixed_bpe,
    "fallback_bpe": fallback_bpe,
    "unigram": unigram,
    "fallback_unigram": fallback_unigram,
    "wordlevel": wordlevel,
}


@cache
def _trained(name: str) -> str:
    """The file of one; training it again may break ties in another way."""
    return TOKENIZERS[name]().to_str()


def content_of(name: str) -> dict[str, Any]:
    """The parsed tokenizer.json of one."""
    return json.loads(_trained(name))


def check_same(content: dict[str, Any], keep: Iterable[int], texts: Iterable[str]) -> int:
    """Every text is read; those whose tokens all stayed as before, with the same places in the text.

    Gives how many those were.
    """
    changed, old_ids = cut_tokenizer(content, keep)
    before, after = tokenizer_of(content), tokenizer_of(changed)
    names = {i: piece for piece, i in after.get_vocab().items()}
    assert sorted(names) == list(range(len(old_ids)))
    assert [names[i] for i in range(len(old_ids))] == [before.id_to_token(int(i)) for i in old_ids]
    stayed, same = set(old_ids.tolist()), 0
    for text in texts:
        old, new = before.encode(text), after.encode(text)
        assert len(new.ids) == 0 or max(new.ids) < len(old_ids)
        after.decode(new.ids)
        if stayed.issuperset(old.ids) and not _is_hidden(content, old.tokens):
            same += 1
            assert new.tokens == old.tokens
            assert np.array_equal(old_ids[new.ids], old.ids)
            assert new.offsets == old.offsets and new.special_tokens_mask == old.special_tokens_mask
    return same


def _is_hidden(content: dict[str, Any], tokens: list[str]) -> bool:
    """Whether a word is unknown to greedy reading alone: shorter pieces may spell it."""
    return content["model"]["type"] == "WordPiece" and content["model"]["unk_token"] in tokens


EXTRA_ROWS = 7
"""Rows of a table beyond the pieces of the tokenizer."""
NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
CLASSES = {
    "wordpiece": ("BertForMaskedLM", "BertConfig", {**WIDTHS, "max_position_embeddings": 64}),
    "byte_bpe": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 1, "n_head": 4}),
    "unigram": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4},
    ),
}


def write_model(folder: Path, name: str, **config: Any) -> Path:
    """A model with one of the tokenizers; its table has more rows than there are pieces."""
    import transformers as t

    inner = tokenizer_of(content_of(name))
    t.PreTrainedTokenizerFast(tokenizer_object=inner, **NAMES).save_pretrained(folder)
    kind, settings, sizes = CLASSES.get(name, CLASSES["wordpiece"])
    last = inner.get_vocab_size()
    ids = {"pad_token_id": inner.token_to_id("[PAD]"), "bos_token_id": inner.token_to_id("[CLS]")}
    ids |= {"eos_token_id": inner.token_to_id("[SEP]")}
    torch.manual_seed(0)
    made = getattr(t, settings)(**sizes, **{**ids, **config}, vocab_size=last + EXTRA_ROWS)
    shape_spectra_(getattr(t, kind)(made)).save_pretrained(folder)
    return folder
