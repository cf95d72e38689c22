"""A sequence-to-sequence model of transformers as ONNX graphs that generate token by token: its encoder, its decoder
without a cache, with one, and for both.

Names of files, inputs, outputs and axes are those that optimum writes, and that transformers.js reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.inputs import MASK, Signature
from lowrank.backends.onnx.edit import constant, new_node
from lowrank.backends.onnx.save import save_model
from lowrank.backends.torch.export import trace
from lowrank.backends.torch.export_cache import BATCH, name_axes
from lowrank.backends.torch.inputs import as_tensors, in_float32
from lowrank.backends.torch.tensors import module_in_float32
from lowrank.errors import ExportError, first_line

ENCODER, FIRST, NEXT, MERGED = "encoder_model", "decoder_model", "decoder_with_past_model", "decoder_model_merged"
"""What the graphs are called. The second starts a text, the third goes on with it, the fourth does both."""
STATES, STATES_MASK, SWITCH = "encoder_hidden_states", "encoder_attention_mask", "use_cache_branch"
IDS, STARTED = "decoder_input_ids", "decoder"
PARTS = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")
"""What a layer's cache holds: of the tokens so far, and of what the encoder gave."""


def export_seq2seq(module: nn.Module, signature: Signature, folder: Path, opset: int) -> list[Path]:
    """Write `encoder_model.onnx`, `decoder_model.onnx`, `decoder_with_past_model.onnx` and `decoder_model_merged.onnx`.

    The last one has no branches, and each weight once. While `use_cache_branch` is false it makes keys and values of
    what the encoder gave, and the caches that go in must be empty; while it is true it reads none of that, and takes
    them from the cache.

    Raises:
        ExportError: if the module has no encoder and decoder with such a cache, or cannot be traced.
    """
    module, signature = module_in_float32(module), in_float32(signature)
    shape = shape_of(module, signature)
    graphs = {
        ENCODER: _encoder(module, signature, opset),
        FIRST: _decoder(module, shape, opset, states=True, past=False),
        NEXT: _decoder(module, shape, opset, states=False, past=True),
        MERGED: _switched(_decoder(module, shape, opset, states=True, past=True)),
    }
    paths = list[Path]()
    for name, model in graphs.items():
        paths.append(folder / f"{name}.onnx")
        save_model(model, paths[-1])
    return paths


@dataclass(frozen=True, slots=True)
class Shape:
    """What a decoder reads beside its tokens."""

    width: int
    """Of the vectors that the encoder gives."""
    masked: bool
    """Whether some of these vectors may be padding."""
    layers: tuple[tuple[int, int, int, int], ...]
    """For each layer heads and width of its own cache, and of that of the encoder's vectors."""


def shape_of(module: nn.Module, signature: Signature) -> Shape:
    """Run a model once, and look at its cache.

    Raises:
        ExportError: if it has no encoder, or no cache of tokens and of what the encoder gave.
    """
    known = as_tensors(signature, signature.example(1, 4))
    try:
        with torch.no_grad():
            states = encoded(module, for_encoder(known))
            result: Any = module(**known, use_cache=True, return_dict=True)
        pairs = list(zip(*_layers(result.past_key_values), strict=True))
        sizes = tuple((a.shape[1], a.shape[3], b.shape[1], b.shape[3]) for a, _, b, _ in _tensors(pairs))
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__} has no encoder, and decoder with a cache of what it read and of what the "
            f"encoder gave ({first_line(error)}); these graphs are for models like T5, BART, Marian and Whisper"
        ) from None
    return Shape(states.shape[-1], MASK in known, sizes)


def encoded(module: Any, values: Mapping[str, Tensor]) -> Tensor:
    """What a model's encoder gives.

    Args:
        module: the whole model.
        values: inputs of the encoder by name.
    """
    return module.get_encoder()(**values, return_dict=True).last_hidden_state


def for_encoder(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs among those of a whole model that its encoder reads."""
    return {name: value for name, value in values.items() if not name.startswith(STARTED)}


def _layers(cache: Any) -> tuple[list[Any], list[Any]]:
    return cache.self_attention_cache.layers, cache.cross_attention_cache.layers


def _tensors(pairs: Sequence[tuple[Any, Any]]) -> list[tuple[Tensor, ...]]:
    return [(own.keys, own.values, other.keys, other.values) for own, other in pairs]


class _Encoder(nn.Module):
    """The encoder as a function of tensors alone."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, tuple(names)

    def forward(self, *values: Tensor) -> Tensor:
        return encoded(self.module, dict(zip(self.names, values, strict=True)))


class _Decoder(nn.Module):
    """The decoder and the head as a function of tensors alone: the cache is a list of them."""

    def __init__(self, module: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.module, self.shape = module, shape

    def forward(
        self, ids: Tensor, mask: Tensor | None, states: Tensor | None, past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        from transformers import DynamicCache, EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        each = len(PARTS)
        own = [(past[i], past[i + 1]) for i in range(0, len(past), each)]
        other = [(past[i + 2], past[i + 3]) for i in range(0, len(past), each)]
        cache = EncoderDecoderCache(DynamicCache(own or None), DynamicCache(other or None))
        # Where vectors are given, their keys and values are made, and added to those that there are.
        cache.is_updated = dict.fromkeys(range(len(self.shape.layers)), states is None)
        vectors = past[2].new_zeros(ids.shape[0], past[2].shape[2], self.shape.width) if states is None else states
        result: Any = self.module(
            encoder_outputs=BaseModelOutput(last_hidden_state=vectors),
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **({} if mask is None else {MASK: mask}),
        )
        kept = 2 if states is None else each
        pairs = list(zip(*_layers(result.past_key_values), strict=True))
        return (result.logits, *(tensor for layer in _tensors(pairs) for tensor in layer[:kept]))


def _encoder(module: nn.Module, signature: Signature, opset: int) -> Any:
    specs = [spec for spec in signature.inputs if not spec.name.startswith(STARTED)]
    example = as_tensors(signature, signature.example(2, 6))
    names = [spec.name for spec in specs]
    dynamic = tuple(
        {i: torch.export.Dim.DYNAMIC for i, dim in enumerate(spec.dims) if isinstance(dim, str)} for spec in specs
    )
    wrapped = _Encoder(module, names).eval()
    model = trace(wrapped, tuple(example[n] for n in names), (dynamic,), names, ["last_hidden_state"], opset)
    for value in (*model.graph.inputs, *model.graph.outputs):
        name_axes(value, {0: BATCH, 1: "encoder_sequence_length"})
    return model


def _decoder(module: nn.Module, shape: Shape, opset: int, *, states: bool, past: bool) -> Any:
    """The graph of the decoder.

    Args:
        module: the whole model.
        shape: of what it reads.
        opset: the operator set.
        states: whether it reads what the encoder gave, and adds keys and values of that to the cache.
        past: whether it takes a cache.
    """
    batch, new, before, known, added = 2, 4, 3, 5 if past else 0, 6 if states else 0
    auto = torch.export.Dim.DYNAMIC
    floats = [
        torch.zeros(batch, heads, length, width)
        for sizes in (shape.layers if past else ())
        for heads, width, length in _lengths(sizes, before, known)
    ]
    mask = torch.ones(batch, known + added, dtype=torch.int64) if shape.masked else None
    vectors = torch.zeros(batch, added, shape.width) if states else None
    example = (torch.zeros(batch, new, dtype=torch.int64), mask, vectors, tuple(floats))
    rows = {0: auto, 1: auto}
    dynamic: Any = (rows, rows if shape.masked else None, rows if states else None, ({0: auto, 2: auto},) * len(floats))
    cached = [f"{i}.{part}" for i in range(len(shape.layers)) for part in PARTS]
    kept = cached if states else [name for name in cached if ".decoder." in name]
    inputs = ["input_ids", *([STATES_MASK] if shape.masked else []), *([STATES] if states else [])]
    inputs += [f"past_key_values.{name}" for name in (cached if past else ())]
    outputs = ["logits", *(f"present.{name}" for name in kept)]
    model = trace(_Decoder(module, shape).eval(), example, dynamic, inputs, outputs, opset)
    _name_axes(model)
    return model


def _lengths(sizes: tuple[int, int, int, int], own: int, other: int) -> list[tuple[int, int, int]]:
    """Heads, width and length of a layer's four tensors."""
    heads, width, others, their = sizes
    return [(heads, width, own)] * 2 + [(others, their, other)] * 2


def _name_axes(model: Any) -> None:
    new, past, read = "decoder_sequence_length", "past_decoder_sequence_length", "encoder_sequence_length"
    taken = any(value.name.startswith("past") for value in model.graph.inputs)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if ".encoder." in value.name:
            names = {0: BATCH, 2: f"{read}_out"}
        elif value.name.startswith("past"):
            names = {0: BATCH, 2: past}
        elif value.name.startswith("present"):
            names = {0: BATCH, 2: f"{past} + {new}" if taken else new}
        else:
            names = {0: BATCH, 1: read if value.name in (STATES, STATES_MASK) else new}
        name_axes(value, names)


def _switched(model: Any) -> Any:
    """Let a decoder that takes vectors and a cache read none of the vectors while `use_cache_branch` is true.

    What is made of no vectors costs next to nothing, and adds nothing to the cache, so that no branch is needed, and
    all products stay in the graph itself, where they can be rounded.
    """
    import onnx_ir as ir

    graph = model.graph
    switch = ir.Value(name=SWITCH, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.BOOL))
    states = next(value for value in graph.inputs if value.name == STATES)
    readers = [(use.node, use.idx) for use in states.uses()]
    ends: dict[int, Any] = {n: constant(graph, f"{STATES}.{n}", np.array([n], np.int64)) for n in (0, 1)}
    sizes = new_node("Shape", [states], {"start": 1, "end": 2}, name=f"{STATES}.length", output=f"{STATES}.length")
    fresh = new_node("Not", [switch], name=f"{SWITCH}.not", output=f"{SWITCH}.not")
    count = new_node("Cast", fresh.outputs, {"to": ir.DataType.INT64}, name=f"{SWITCH}.fresh", output=f"{SWITCH}.fresh")
    stop = new_node("Mul", [*sizes.outputs, *count.outputs], name=f"{STATES}.stop", output=f"{STATES}.stop")
    inputs = [states, ends[0], *stop.outputs, ends[1]]
    cut = new_node("Slice", inputs, name=f"{STATES}.read", output=f"{STATES}.read")
    graph.insert_before(graph[0], [sizes, fresh, count, stop, cut])
    for node, index in readers:
        node.replace_input_with(index, cut.outputs[0])
    graph.inputs.append(switch)
    return model
