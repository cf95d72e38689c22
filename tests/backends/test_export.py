"""Export: the graph that the contract describes, equal to torch at every shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from builders import tiny_transformer, trained_blocks, two_factors

from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.outputs import Output
from lowrank.backends.torch import ModuleBackend
from lowrank.backends.torch.export import export_onnx
from lowrank.errors import ExportError
from lowrank.evaluate.parity import check_parity

pytestmark = pytest.mark.usefixtures("exporter")


def factored(model: object, rank: int = 4) -> tuple[ModuleBackend, Signature]:
    backend = open_model(model)
    assert isinstance(backend, ModuleBackend)
    wanted = [w.name for w in backend.weights if w.role == "projection"]
    small = backend.rewrite({n: two_factors(backend.read(n), rank) for n in wanted})
    assert isinstance(small.signature, Signature)
    return small, small.signature


def chains(model: onnx.ModelProto) -> int:
    """How often MatMul feeds MatMul feeds Add, all weights constant, the bias last."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {i.name for i in model.graph.initializer}

    def constant_matmul(name: str) -> onnx.NodeProto | None:
        node = makers.get(name)
        return node if node is not None and node.op_type == "MatMul" and node.input[1] in constants else None

    found = 0
    for node in model.graph.node:
        if node.op_type == "Add" and (outer := constant_matmul(node.input[0])) and constant_matmul(outer.input[0]):
            found += 1
    return found


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "projections"),
    [
        ("bert", ["input_ids", "attention_mask", "token_type_ids"], ["last_hidden_state", "pooler_output"], 12),
        ("gpt2", ["input_ids", "attention_mask"], ["logits"], 12),
        ("vit", ["pixel_values"], ["logits"], 12),
    ],
)
def test_contract(kind: str, inputs: list[str], outputs: list[str], projections: int, tmp_path: Path) -> None:
    small, signature = factored(tiny_transformer(kind))
    path = tmp_path / "model.onnx"
    export_onnx(small.module, signature, path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [i.name for i in model.graph.input] == inputs
    assert [o.name for o in model.graph.output] == outputs
    assert all(i.type.tensor_type.shape.dim[0].dim_param == "batch" for i in model.graph.input)
    assert {o.domain: o.version for o in model.opset_import}[""] == 20
    assert chains(model) == projections
    names = {i.name for i in model.graph.initializer}
    assert sum(name.endswith(".right.weight") for name in names) == projections
    parity = check_parity(small, path)
    assert parity.max_abs < 1e-4
    if kind != "vit":
        assert any("padded" in case for case in parity.cases)


def test_two_dimensional_inputs_give_matmuls_too(tmp_path: Path) -> None:
    small, _ = factored(torch.nn.Sequential(trained_blocks(), torch.nn.Identity()))
    signature = Signature(of_rows(), (Output("output"),), 1)
    export_onnx(small.module, signature, tmp_path / "m.onnx")
    assert chains(onnx.load(tmp_path / "m.onnx")) == 4
    session = ort.InferenceSession(tmp_path / "m.onnx")
    x = torch.randn(5, 16)
    with torch.no_grad():
        assert np.allclose(session.run(None, {"x": x.numpy()})[0], small.module(x).numpy(), atol=1e-5)


def of_rows() -> tuple:
    from lowrank.backends.inputs import Input

    return (Input("x", "float32", ("batch", 16)),)


def test_large_models_keep_their_weights_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank.backends.onnx import save

    monkeypatch.setattr(save, "INLINE_BYTES", 1000)
    small, signature = factored(trained_blocks())
    export_onnx(small.module, signature, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size > 1000
    check_parity(small, tmp_path / "model.onnx")


def test_parity_notices_a_wrong_graph(tmp_path: Path) -> None:
    small, signature = factored(trained_blocks())
    export_onnx(small.module, signature, tmp_path / "m.onnx")
    with torch.no_grad():
        small.module.layers[0].up.left.weight[0, 0] += 0.5
    with pytest.raises(ExportError, match="differs from the model"):
        check_parity(small, tmp_path / "m.onnx")


def test_what_cannot_be_traced_says_so(tmp_path: Path) -> None:
    class Stubborn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = trained_blocks()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) if float(x.detach().sum().item()) > 0 else x

    signature = open_model(trained_blocks()).signature  # type: ignore[attr-defined]
    with pytest.raises(ExportError, match="could not trace Stubborn"):
        export_onnx(Stubborn(), signature, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_norms_stay_apart_from_the_additions_before_them(tmp_path: Path) -> None:
    open_model(tiny_transformer()).write_onnx(tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    ort.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "seen.onnx")).graph.node]
    assert "SkipLayerNormalization" not in kinds and kinds.count("LayerNormalization") == 5


def test_shapes_of_several_inputs_come_with_calib(tmp_path: Path, cli) -> None:
    from builders import build_two

    rng, module = np.random.default_rng(0), build_two().eval()
    torch.save(module.state_dict(), tmp_path / "m.pt")
    arrays = {"a": rng.standard_normal((9, 12)).astype("f"), "b": rng.standard_normal((9, 20)).astype("f")}
    np.savez(tmp_path / "x.npz", **arrays)
    named = ("export", tmp_path / "m.pt", "--arch", "builders:build_two", "-o", tmp_path / "out")
    refused = cli(*named)
    assert refused.code == 1 and "--calib" in refused.err
    outcome = cli(*named, "--calib", tmp_path / "x.npz")
    assert outcome.code == 0, outcome.err
    found = ort.InferenceSession(tmp_path / "out/model.onnx").run(None, arrays)[0]
    wanted = module(*(torch.from_numpy(a) for a in arrays.values())).detach().numpy()
    assert np.allclose(found, wanted, atol=1e-5)
