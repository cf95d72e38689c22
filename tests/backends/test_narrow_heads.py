"""Narrower heads in a graph: the zeros go, the function stays, and what is not understood stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from architectures import analysis_of, with_biases

from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.onnx.passes.narrow_heads import narrow_heads
from lowrank.backends.torch.export_seq2seq import export_seq2seq
from lowrank.backends.torch.heads import widen_
from lowrank.backends.torch.module import ModuleBackend
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.attention import spread_of
from lowrank.evaluate.decoding import check_decoding
from lowrank.evaluate.parity import check_parity


def narrowed(dense: ModuleBackend) -> dict[str, Replacement]:
    """Every attention with half of its channels, one less between query and key."""
    assert isinstance(dense.signature, Signature)
    couplings = [coupling for coupling in dense.couplings if coupling.kind in ("query_key", "value_output")]
    analysis = analysis_of(dense, couplings, tuple(dense.signature.example(2, 11) for _ in range(2)))
    made: dict[str, Replacement] = {}
    structure = structure_named("product")
    assert structure is not None
    for coupling in analysis.couplings:
        rank = int(coupling.ranks[-1]) // 2 - (
            coupling.group.coupling is not None and coupling.group.coupling.kind == "query_key"
        )
        made |= structure.factorize(coupling.group, rank, analysis, dense)
    return made


def zeros_put_in(graph: ir.Graph) -> int:
    """Gathers of something with one zero appended."""
    padded = {n.outputs[0] for n in graph if n.op_type == "Pad" and _appends_one(n)}
    return sum(n.op_type == "Gather" and n.inputs[0] in padded for n in graph)


def _appends_one(node: ir.Node) -> bool:
    pads = node.inputs[1]
    return pads is not None and pads.const_value is not None and int(pads.const_value.numpy().sum()) == 1


# Positions turn query and key in llama, qwen3 and mixtral, so that there values alone get narrower; in modernbert one
# tensor holds all three, and the zeros stay.
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("bert", 0),
        ("gpt2", 0),
        ("opt", 0),
        ("llama", 0),
        ("t5", 0),
        ("swin", 0),
        ("whisper", 0),
        ("encoder", 0),
        ("mingpt", 0),
        ("modernbert", 1),
    ],
)
@pytest.mark.slow_but("bert-0")
def test_heads_are_narrow_in_the_graph(name: str, left: int, tmp_path: Path) -> None:
    dense = open_model(with_biases(name))
    assert isinstance(dense, ModuleBackend)
    small = dense.rewrite(narrowed(dense))
    small.write_onnx(tmp_path / "model.onnx")
    graph = ir.load(tmp_path / "model.onnx").graph
    assert zeros_put_in(graph) == left
    check_parity(small, tmp_path / "model.onnx")


@pytest.mark.slow
def test_caches_of_widened_heads_have_the_width_that_the_config_says(tmp_path: Path) -> None:
    dense = open_model(with_biases("t5"))
    assert isinstance(dense, ModuleBackend)
    small = dense.rewrite(narrowed(dense))
    assert isinstance(small.signature, Signature)

    def widths(folder: str) -> list[object]:
        (tmp_path / folder).mkdir()
        *_, merged = export_seq2seq(small.module, small.signature, tmp_path / folder, 20)
        check_decoding(small, tmp_path / folder)
        past = [value for value in ir.load(merged).graph.inputs if value.name and value.name.startswith("past")]
        return [value.shape and value.shape[3] for value in past]

    assert widths("narrow") == [4] * 4
    feed = small.signature.example(2, 5)
    before = next(iter(small.outputs_of([feed])))
    assert widen_(small.module, small.replaced, {w.name: w.shape for w in dense.weights})
    after = next(iter(small.outputs_of([feed])))
    assert all(np.allclose(before[name], after[name], atol=1e-5) for name in before)
    assert widths("wide") == [8] * 4


def attention(*, scale: str = "Mul", keys: int = 3) -> ir.Model:
    """Query and key of two heads of 4 channels, of which 3 (and `keys`) are real; their product is the output."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[B, S, 6] q, float[B, S, {2 * keys}] k) => (float[B, 2, S, S] scores)
        <int64[6] pads = {{0, 0, 0, 0, 0, 1}}, int64[4] heads = {{0, -1, 2, 4}}, float[1] factor = {{0.5}}> {{
            qp = Pad(q, pads)
            kp = Pad(k, pads)
            qw = Gather<axis=-1>(qp, qi)
            kw = Gather<axis=-1>(kp, ki)
            qh = Reshape(qw, heads)
            kh = Reshape(kw, heads)
            qt = Transpose<perm=[0, 2, 1, 3]>(qh)
            kt = Transpose<perm=[0, 2, 3, 1]>(kh)
            qs = {scale}(qt, factor)
            scores = MatMul(qs, kt)
        }}
    """
    import onnx

    proto = onnx.parser.parse_model(text)
    for name, width in (("qi", 3), ("ki", keys)):
        index = spread_of(2, width, 4)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.where(index < 0, 2 * width, index), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def scores(model: ir.Model, keys: int) -> np.ndarray:
    import onnxruntime

    generator = np.random.default_rng(0)
    feed = {n: generator.normal(size=(2, 5, 2 * w)).astype(np.float32) for n, w in (("q", 3), ("k", keys))}
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feed)[0]


@pytest.mark.parametrize(("scale", "keys", "changed"), [("Mul", 3, 2), ("Div", 3, 2), ("Add", 3, 0), ("Mul", 2, 0)])
def test_only_what_is_understood_is_changed(scale: str, keys: int, changed: int) -> None:
    """A sum would make numbers of the zeros, and sides that differ in width do not fit."""
    model = attention(scale=scale, keys=keys)
    before = scores(model, keys)
    assert narrow_heads(model) == changed
    np.testing.assert_allclose(scores(model, keys), before, rtol=1e-5, atol=1e-6)
    assert zeros_put_in(model.graph) == 2 - changed


def test_values_without_a_shape_are_left_alone() -> None:
    model = attention()
    before = scores(model, 3)
    for node in model.graph:
        if node.op_type in ("Gather", "Transpose"):
            node.outputs[0].shape = None
    assert narrow_heads(model) == 0
    np.testing.assert_array_equal(scores(model, 3), before)
