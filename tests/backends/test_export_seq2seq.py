"""A model with an encoder and a decoder as graphs that generate."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from architectures import SEQ2SEQ, build, transformers_model
from builders import shape_spectra_

from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.torch import ModuleBackend
from lowrank.backends.torch.export_seq2seq import ENCODER, FIRST, MERGED, NEXT, export_seq2seq, shape_of
from lowrank.edge.graph_file import fit_file
from lowrank.edge.target import Target
from lowrank.errors import ExportError
from lowrank.evaluate.decoding import check_decoding


def opened(name: str) -> ModuleBackend:
    if name == "bart":
        torch.manual_seed(0)
        made = transformers_model(
            "BartForConditionalGeneration", "BartConfig", **SEQ2SEQ, max_position_embeddings=64, pad_token_id=0
        )
        module = shape_spectra_(made()).eval()
    else:
        module = build(name)
    backend = open_model(module)
    assert isinstance(backend, ModuleBackend)
    return backend


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bart", "whisper"])
def test_graphs_write_what_torch_writes(name: str, tmp_path: Path) -> None:
    backend = opened(name)
    assert isinstance(backend.signature, Signature)
    graphs = export_seq2seq(backend.module, backend.signature, tmp_path, 20)
    assert [path.stem for path in graphs] == [ENCODER, FIRST, NEXT, MERGED]
    check_decoding(backend, tmp_path)
    masked = [] if name == "whisper" else ["encoder_attention_mask"]
    session = ort.InferenceSession(tmp_path / f"{MERGED}.onnx")
    shapes = {i.name: i.shape for i in session.get_inputs()}
    past = [f"past_key_values.0.{part}.{each}" for part in ("decoder", "encoder") for each in ("key", "value")]
    assert list(shapes) == ["input_ids", *masked, "encoder_hidden_states", *past, "use_cache_branch"]
    assert shapes["use_cache_branch"] == [1]
    assert shapes[past[0]] == ["batch_size", 4, "past_decoder_sequence_length", 8]
    assert shapes[past[2]] == ["batch_size", 4, "encoder_sequence_length_out", 8]
    given = [o.name for o in session.get_outputs()]
    assert given == ["logits", *(name.replace("past_key_values", "present") for name in past)]
    following = ort.InferenceSession(tmp_path / f"{NEXT}.onnx")
    assert [i.name for i in following.get_inputs()] == ["input_ids", *masked, *past]
    assert [o.name for o in following.get_outputs()] == given[:3]
    # Each weight once: the caches take no more of them than the decoder that starts a text.
    assert graphs[3].stat().st_size < 1.1 * graphs[1].stat().st_size
    for path in graphs:
        fit_file(path, Target(dtype="int8"), backend.signature)
    check_decoding(backend, tmp_path, exact=False)
    with pytest.raises(ExportError, match="differs from torch"):
        check_decoding(backend, tmp_path)


def test_a_model_without_an_encoder_has_no_such_cache() -> None:
    backend = opened("gpt2")
    assert isinstance(backend.signature, Signature)
    with pytest.raises(ExportError, match="has no encoder"):
        shape_of(backend.module, backend.signature)
