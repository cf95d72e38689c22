"""Narrower heads in torch: attention computes at the width that is left, gives the same, and is saved and loaded so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from architectures import with_biases
from builders import tiny_transformer
from test_narrow_heads import narrowed
from torch import nn

import lowrank
from lowrank.artifacts.files import RECORD_FILE, read_json, write_json
from lowrank.backends import open_model
from lowrank.backends.torch.heads import wide_heads
from lowrank.backends.torch.layers import register_optional_layers
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.replace import prepare_layers_, replace_in_place_, replace_layers_
from lowrank.evaluate.parity import check_parity
from lowrank.nn import NarrowLinear

WIDTHS = {
    "bert": ("encoder.layer.0.attention.self", {"attention_head_size": 4, "all_head_size": 16}),
    "gpt2": ("transformer.h.0.attn", {"head_dim": 4, "split_size": 16, "embed_dim": 32}),
    "vit": ("vit.layers.0.attention", {"head_dim": 4}),
    "opt": ("model.decoder.layers.0.self_attn", {"head_dim": 4, "embed_dim": 32}),
    "t5": ("decoder.block.0.layer.1.EncDecAttention", {"key_value_proj_dim": 4, "inner_dim": 16, "d_model": 32}),
    "swin": ("swin.encoder.layers.1.blocks.0.attention", {"head_dim": 4}),
    "whisper": ("model.decoder.layers.0.encoder_attn", {"head_dim": 4}),
    "encoder": ("layers.0.self_attn", {"head_dim": 8}),
}
"""An attention of each model, and what its integers are where heads of 8 channels have kept 3 and 4."""


def padded(dense: ModuleBackend, made: dict[str, Any]) -> nn.Module:
    """The same with the zeros between the heads' channels."""
    module = open_model(dense.module)
    assert isinstance(module, ModuleBackend) and module.fresh is None
    import copy

    other = copy.deepcopy(module.module)
    replace_layers_(other, {w.name: w for w in dense.weights}, made)
    return other


def pair(name: str) -> tuple[ModuleBackend, ModuleBackend, nn.Module]:
    """The dense model, the one with narrow heads, and the one with zeros in them."""
    dense = open_model(with_biases(name))
    assert isinstance(dense, ModuleBackend)
    made = narrowed(dense)
    return dense, dense.rewrite(made), padded(dense, made)


@pytest.mark.slow_but("bert", "gpt2")
@pytest.mark.parametrize("name", list(WIDTHS))
def test_attention_runs_at_the_width_that_is_left(name: str, tmp_path: Path) -> None:
    dense, small, wide = pair(name)
    path, integers = WIDTHS[name]
    attention = small.module.get_submodule(path)
    assert {key: getattr(attention, key) for key in integers} == integers
    assert not wide_heads(small.replaced)
    assert sum(p.numel() for p in small.module.parameters()) == sum(p.numel() for p in wide.parameters())
    assert not isinstance(dense.signature, str)
    for feed in (dense.signature.example(1, 4), dense.signature.example(3, 9, padded=True)):
        zeros = ModuleBackend(wide, {}, dense.signature, dense.rebuild)
        for output, value in zeros.outputs(feed).items():
            np.testing.assert_allclose(small.outputs(feed)[output], value, rtol=1e-4, atol=1e-5)
    small.save(tmp_path)
    again = lowrank.load(tmp_path, arch=lambda: with_biases(name))
    assert isinstance(again, nn.Module)
    loaded = ModuleBackend(again, {}, dense.signature, dense.rebuild)
    for output, value in small.outputs(feed).items():
        assert np.array_equal(loaded.outputs(feed)[output], value)
