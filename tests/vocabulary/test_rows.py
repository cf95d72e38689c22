"""With fewer rows a model computes what it computed for texts whose tokens stayed."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from architectures import WIDTHS
from builders import shape_spectra_

from lowrank.backends.vocabulary.rows import cut_rows
from lowrank.errors import UnsupportedModel, VocabularyError

VOCABULARY = 97
"""No other size in these models."""
OLD_IDS = np.array([0, 1, 2, 3, *range(10, 70, 3), 80, 95, 96], np.int64)
MARKS = {"pad_token_id": 0, "bos_token_id": 95, "eos_token_id": 96}
SEQ2SEQ = {
    **{f"{part}_{what}": count for part in ("encoder", "decoder") for what, count in (("layers", 1), ("ffn_dim", 64))},
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_start_token_id": 95,
    "forced_eos_token_id": 96,
}


def model_of(kind: str, **changes: Any) -> Any:
    import transformers as t

    configs: dict[str, Any] = {
        "BertModel": lambda: t.BertConfig(**WIDTHS, pad_token_id=3),
        "BertForMaskedLM": lambda: t.BertConfig(**WIDTHS, pad_token_id=0),
        "RobertaModel": lambda: t.RobertaConfig(**WIDTHS, type_vocab_size=1, **{**MARKS, "pad_token_id": 1}),
        "GPT2LMHeadModel": lambda: t.GPT2Config(n_embd=32, n_layer=2, n_head=4, **MARKS),
        "LlamaForCausalLM": lambda: t.LlamaConfig(**WIDTHS, num_key_value_heads=2, **MARKS),
        "T5ForConditionalGeneration": lambda: t.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=96,
            decoder_start_token_id=95,
        ),
        "BartForConditionalGeneration": lambda: t.BartConfig(d_model=32, **SEQ2SEQ, **MARKS),
        "CLIPTextModel": lambda: t.CLIPTextConfig(**WIDTHS, max_position_embeddings=32, **MARKS),
    }  # fmt: skip
    config = configs[kind]()
    config.vocab_size = VOCABULARY
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = shape_spectra_(getattr(t, kind)(config)).eval()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("bias"):
            torch.nn.init.normal_(tensor.data, std=0.1)
    return model


def outputs(model: Any, ids: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    given = {"decoder_input_ids": decoded} if model.config.is_encoder_decoder else {}
    mask = torch.ones_like(ids)
    mask[:, -2:] = 0
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, **given)[0]


MODELS = {
    "BertModel": {},
    "BertForMaskedLM": {},
    "RobertaModel": {},
    "GPT2LMHeadModel": {},
    "LlamaForCausalLM": {"tie_word_embeddings": False},
    "T5ForConditionalGeneration": {},
    "BartForConditionalGeneration": {},
    "CLIPTextModel": {},
}


@pytest.mark.parametrize("kind", MODELS)
def test_outputs_are_the_same(kind: str) -> None:
    model = model_of(kind, **MODELS[kind])
    kept = torch.from_numpy(OLD_IDS)
    tied = model.get_output_embeddings() is not None and model.config.tie_word_embeddings
    new = torch.randint(1, len(OLD_IDS), (3, 12))
    # What ends a text decides where CLIP looks.
    new[:, -3] = len(OLD_IDS) - 1
    written = torch.randint(1, len(OLD_IDS), (3, 5))
    before = outputs(model, kept[new], kept[written])
    count = sum(p.numel() for p in model.parameters())
    cut_rows(model, OLD_IDS)
    after = outputs(model, new, written)
    if before.shape[-1] == VOCABULARY:
        assert after.shape[-1] == len(OLD_IDS)
        before = before[..., kept]
    assert torch.allclose(after, before, atol=1e-5, rtol=1e-5)
    heads = 1 if model.get_output_embeddings() is None or tied else 2
    biases = kind == "BertForMaskedLM"
    assert count - sum(p.numel() for p in model.parameters()) == (VOCABULARY - len(OLD_IDS)) * (32 * heads + biases)
    sizes = {
        m.num_embeddings
        for n, m in model.named_modules()
        if n.endswith(("word_embeddings", "shared", "wte", "embed_tokens"))
    }
    assert sizes <= {len(OLD_IDS)} and model.config.vocab_size == len(OLD_IDS)


def test_a_saved_model_is_loaded_as_it_was(tmp_path: Any) -> None:
    import transformers as t

    for kind in ("BertForMaskedLM", "T5ForConditionalGeneration", "LlamaForCausalLM"):
        model = model_of(kind)
        cut_rows(model, OLD_IDS)
        ids = torch.randint(1, len(OLD_IDS), (2, 9))
        model.save_pretrained(tmp_path / kind)
        loaded = getattr(t, kind).from_pretrained(tmp_path / kind).eval()
        assert torch.equal(outputs(loaded, ids, ids), outputs(model, ids, ids))


def test_ids_are_renumbered_wherever_a_model_remembers_them() -> None:
    model = model_of("BartForConditionalGeneration")
    model.generation_config.suppress_tokens = [10, 11, 80]
    cut_rows(model, OLD_IDS)
    last = len(OLD_IDS) - 1
    for config in (model.config, model.model.encoder.config, model.generation_config):
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, last - 1, last)
    assert model.config.decoder_start_token_id == last - 1 and model.config.forced_eos_token_id == last
    assert model.generation_config.suppress_tokens == [4, last - 2]
    made = model.generate(torch.tensor([[1, 5, 6, last]]), max_new_tokens=3, do_sample=False)
    assert int(made.max()) <= last and made[0, 0] == last - 1
    padded = model_of("BertModel", pad_token_id=3)
    cut_rows(padded, np.array([0, 3, 5], np.int64))
    assert padded.config.pad_token_id == padded.embeddings.word_embeddings.padding_idx == 1


def _unchanged(model: Any, old_ids: np.ndarray, error: type[Exception], message: str) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        cut_rows(model, old_ids)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_what_cannot_be_cut_is_refused_and_stays_as_it_was() -> None:
    kept = np.array([1, 2, 95, 96], np.int64)
    _unchanged(model_of("RobertaModel"), kept, UnsupportedModel, r"counts positions.*ids below it stay")
    _unchanged(model_of("GPT2LMHeadModel"), np.array([0, 5]), VocabularyError, r"token 9\d is to go.*let it stay")
    for wrong in ([0, 95, 96, 96], [0, 95, 96, 97], [-1, 0, 95, 96], []):
        _unchanged(model_of("GPT2LMHeadModel"), np.array(wrong, np.int64), VocabularyError, "of a table of 97")
    import transformers as t

    vision = t.ViTModel(t.ViTConfig(**WIDTHS, image_size=16, patch_size=8))
    _unchanged(vision, kept, UnsupportedModel, r"ViTModel has no table of tokens")
    mobile = t.MobileBertConfig(**{**WIDTHS, "hidden_size": 40}, embedding_size=32, vocab_size=VOCABULARY)
    _unchanged(t.MobileBertForMaskedLM(mobile), kept, UnsupportedModel, r"only its class knows")


def test_the_part_that_reads_text_is_cut() -> None:
    import transformers as t

    text = {**WIDTHS, **MARKS, "vocab_size": VOCABULARY, "max_position_embeddings": 32}
    config = t.CLIPConfig(text_config=text, vision_config={**WIDTHS, "image_size": 16, "patch_size": 8})
    model = t.CLIPModel(config).eval()
    new = torch.randint(1, len(OLD_IDS) - 1, (2, 9))
    new[:, -3] = len(OLD_IDS) - 1
    before = model.text_model(input_ids=torch.from_numpy(OLD_IDS)[new])
    cut_rows(model, OLD_IDS)
    after = model.text_model(input_ids=new)
    assert torch.allclose(before.last_hidden_state, after.last_hidden_state, atol=1e-5)
    assert torch.allclose(before.pooler_output, after.pooler_output, atol=1e-5)
    assert model.config.text_config.vocab_size == len(OLD_IDS)
