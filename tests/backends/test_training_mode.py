"""Models that were exported in training mode are run, calibrated and written as they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from builders import decaying
from onnx import TensorProto, helper
from onnx_builders import IN, OUT, init, model, node, weight
from torch import nn

import lowrank
from lowrank.backends import open_model
from lowrank.inspection import inspect

HALF = init(np.float32(0.5), "ratio")
ON = init(np.array(True), "on")
X = np.random.default_rng(3).standard_normal((2, 3, IN)).astype(np.float32)


def dropout(value: str = "x", mode: str = "on", output: str = "d") -> onnx.NodeProto:
    return node("Dropout", [value, "ratio", mode], output)


def plain() -> onnx.ModelProto:
    return model([dropout(), node("MatMul", ["d", "w"], "y")], [init(weight(), "w"), HALF, ON])


def by_input() -> onnx.ModelProto:
    made = model([dropout(mode="training"), node("MatMul", ["d", "w"], "y")], [init(weight(), "w"), HALF])
    made.graph.input.append(helper.make_tensor_value_info("training", TensorProto.BOOL, []))
    return made


def by_constant_node() -> onnx.ModelProto:
    mode = helper.make_node("Constant", [], ["on"], value=ON)
    return model([mode, dropout(), node("MatMul", ["d", "w"], "y")], [init(weight(), "w"), HALF])


def in_branch() -> onnx.ModelProto:
    value = helper.make_tensor_value_info("d", TensorProto.FLOAT, None)
    branch = helper.make_graph([dropout()], "then", [], [value])
    other = helper.make_graph([node("Identity", ["x"], "e")], "else", [], [helper.make_value_info("e", value.type)])
    chosen = node("If", ["on"], "c", then_branch=branch, else_branch=other)
    return model([chosen, node("MatMul", ["c", "w"], "y")], [init(weight(), "w"), HALF, ON])


def with_mask() -> onnx.ModelProto:
    masked = helper.make_node("Dropout", ["x", "ratio", "on"], ["d", "mask"], name="drop")
    kept = [node("Cast", ["mask"], "m", to=TensorProto.FLOAT), node("Mul", ["d", "m"], "e")]
    return model([masked, *kept, node("MatMul", ["e", "w"], "y")], [init(weight(), "w"), HALF, ON])


DROPOUTS = {f.__name__: f for f in (plain, by_input, by_constant_node, in_branch, with_mask)}


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_is_the_identity(name: str, tmp_path: Path) -> None:
    onnx.save(DROPOUTS[name](), tmp_path / "m.onnx")
    backend = open_model(tmp_path / "m.onnx")
    feed = {"x": X, "training": np.array(True)}
    assert np.allclose(backend.run(feed), X @ weight(), atol=1e-6)
    assert "training mode" in backend.source["notes"][0] and "1 x Dropout" in backend.source["notes"][0]
    assert inspect(tmp_path / "m.onnx").facts["notes"] == list(backend.source["notes"])
    backend.write_onnx(tmp_path / "out.onnx")
    session = ort.InferenceSession(tmp_path / "out.onnx")
    feed = {i.name: feed[i.name] for i in session.get_inputs()}
    assert np.allclose(session.run(None, feed)[0], X @ weight(), atol=1e-6)


def test_dropout_that_is_off_changes_nothing(tmp_path: Path) -> None:
    off = init(np.array(False), "on")
    onnx.save(
        model([dropout(), node("MatMul", ["d", "w"], "y")], [init(weight(), "w"), HALF, off]), tmp_path / "m.onnx"
    )
    backend = open_model(tmp_path / "m.onnx")
    assert "notes" not in backend.source and backend.path == tmp_path / "m.onnx"


def normed(shown: bool) -> onnx.ModelProto:
    """A product and a BatchNormalization that takes the statistics of its batch."""
    numbers = {k: np.linspace(a, b, OUT, dtype=np.float32) for k, a, b in (("s", 1, 2), ("b", 0, 1), ("mean", -1, 1))}
    numbers["var"] = np.linspace(0.5, 3, OUT, dtype=np.float32)
    outputs = ["y", "new_mean", "new_var"]
    norm = helper.make_node("BatchNormalization", ["p", *numbers], outputs, name="norm", training_mode=1)
    held = [init(array, name) for name, array in numbers.items()]
    made = model([node("MatMul", ["x", "w"], "p"), norm], [init(weight(), "w"), *held], ("batch", IN))
    if shown:
        made.graph.output.append(helper.make_tensor_value_info("new_mean", TensorProto.FLOAT, None))
    return made


def test_batch_norm_uses_its_stored_statistics(tmp_path: Path) -> None:
    onnx.save(normed(False), tmp_path / "m.onnx")
    backend, x = open_model(tmp_path / "m.onnx"), X[0]
    scale, shift, mean, var = (np.linspace(a, b, OUT) for a, b in ((1, 2), (0, 1), (-1, 1), (0.5, 3)))
    wanted = (x @ weight() - mean) / np.sqrt(var + 1e-5) * scale + shift
    assert np.allclose(backend.run({"x": x}), wanted, atol=1e-5)
    assert "1 x BatchNormalization" in backend.source["notes"][0]


def test_batch_norm_whose_statistics_are_outputs_stays_and_is_named(tmp_path: Path) -> None:
    onnx.save(normed(True), tmp_path / "m.onnx")
    (note,) = open_model(tmp_path / "m.onnx").source["notes"]
    assert "BatchNormalization norm" in note and "depends on the batch" in note


def test_what_is_drawn_at_random_is_named(tmp_path: Path) -> None:
    drawn = [node("RandomUniformLike", ["x"], "u"), node("Add", ["x", "u"], "d"), node("MatMul", ["d", "w"], "y")]
    onnx.save(model(drawn, [init(weight(), "w")]), tmp_path / "m.onnx")
    (note,) = open_model(tmp_path / "m.onnx").source["notes"]
    assert "RandomUniformLike" in note and "other numbers at every run" in note


class Dropping(nn.Module):
    """Two layers with dropout and a norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.drop, self.down = (
            nn.Linear(12, 32),
            nn.BatchNorm1d(32),
            nn.Dropout(0.5),
            nn.Linear(32, 6),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.drop(self.norm(torch.relu(self.up(x)))))


def dropping() -> Dropping:
    module = Dropping().eval()
    with torch.no_grad():
        module.up.weight.copy_(torch.from_numpy(decaying(32, 12)))
        module.norm(torch.randn(64, 32))
        module.norm.running_mean.copy_(torch.linspace(0, 0.2, 32))  # type: ignore[union-attr]
        module.norm.running_var.copy_(torch.linspace(0.5, 2, 32))  # type: ignore[union-attr]
    return module


@pytest.mark.slow_but("program")
@pytest.mark.parametrize("form", ["graph", "program", "decomposed"])
def test_a_module_that_was_exported_while_training(form: str, tmp_path: Path) -> None:
    suffix = ".onnx" if form == "graph" else ".pt2"
    module, path, x = dropping(), tmp_path / f"m{suffix}", torch.randn(5, 12)
    wanted = module(x).detach().numpy()
    dims = ({0: torch.export.Dim.DYNAMIC},)
    module.train()
    if suffix == ".pt2":
        program = torch.export.export(module, (x,), dynamic_shapes=dims)
        torch.export.save(program.run_decompositions() if form == "decomposed" else program, path)
    else:
        torch.onnx.export(module, (x,), path, dynamo=True, dynamic_shapes=dims, verbose=False, input_names=["x"])
    module.eval()
    backend = open_model(path)
    assert np.allclose(backend.run({"x": x.numpy()}), module(x).detach().numpy(), atol=1e-5)
    assert np.allclose(wanted, module(x).detach().numpy(), atol=1e-5)
    assert "training mode" in " ".join(backend.source["notes"])


def test_the_report_says_so_and_the_result_is_right(tmp_path: Path) -> None:
    onnx.save(plain(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(5).standard_normal((64, 3, IN)).astype(np.float32))
    settings = lowrank.Settings(calib=str(tmp_path / "x.npz"), targets=("all",))
    report = lowrank.compress(tmp_path / "m.onnx", 0.8, output=tmp_path / "run", settings=settings, latency=False)
    assert any("training mode" in note for note in report.notes)
    found = ort.InferenceSession(tmp_path / "run/model.onnx").run(None, {"x": X})[0]
    assert np.linalg.norm(found - X @ weight()) < 0.3 * np.linalg.norm(X @ weight())
