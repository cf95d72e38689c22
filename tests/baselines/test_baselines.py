"""What low rank is compared with: zeros that are there, and a student that is the dense model but for its blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_bert_folder, tiny_transformer, trained_blocks
from onnx_builders import matmul_right

import lowrank
from lowrank.baselines.pruning import pruned, without_smallest, zeros_in
from lowrank.baselines.student import half_of, save_student
from lowrank.errors import UnsupportedModel


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.77])
def test_the_smallest_numbers_are_zeros_and_no_others_change(bert_folder: Path, keep: float) -> None:
    dense = lowrank.open_model(str(bert_folder))
    names = [weight.name for weight in dense.weights if weight.role == "projection"]
    before = {name: dense.read(name) for name in names}
    small, zeros = pruned(dense, names, keep)
    after = {name: small.read(name) for name in names}
    assert zeros == zeros_in(after) == sum(m.size - int(keep * m.size) for m in before.values())
    for name in names:
        kept = after[name] != 0
        assert np.array_equal(after[name][kept], before[name][kept])
        assert np.abs(before[name][~kept]).max() <= np.abs(before[name][kept]).min()
        assert np.array_equal(dense.read(name), before[name])


def test_of_equal_numbers_as_many_as_are_wanted_are_kept() -> None:
    assert np.count_nonzero(without_smallest(np.ones((3, 5)), 0.4)) == 6


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_student_is_every_second_block(tmp_path: Path, kind: str) -> None:
    tiny_bert_folder(tmp_path / "dense", kind)
    dense = lowrank.open_model(str(tmp_path / "dense"))
    student = half_of(dense)
    assert student.module.config.num_hidden_layers == 1 and dense.module.config.num_hidden_layers == 2
    # The same, once the dense model's second block gives what it is given.
    feed = dense.signature.example(2, 5)
    blocks = dense.module.encoder.layer if kind == "bert" else dense.module.transformer.h
    del blocks[1]
    assert np.allclose(student.run(feed), dense.run(feed), atol=1e-6)
    (tmp_path / "student").mkdir()
    save_student(student, tmp_path / "student")
    again = lowrank.load(tmp_path / "student")
    assert again.config.num_hidden_layers == 1
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in student.module.state_dict().items())


def test_numbers_of_a_graph_are_pruned_alike(tmp_path: Path) -> None:
    import onnx

    built, _ = matmul_right()
    onnx.save(built, tmp_path / "model.onnx")
    dense = lowrank.open_model(str(tmp_path / "model.onnx"))
    (weight,) = dense.weights
    small, zeros = pruned(dense, [weight.name], 0.5)
    assert zeros == weight.params - weight.params // 2
    small.write_onnx(tmp_path / "small.onnx")
    (stored,) = [onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "small.onnx").graph.initializer]
    assert stored.size - np.count_nonzero(stored) == zeros
    with pytest.raises(UnsupportedModel, match="no torch module"):
        half_of(dense)


def test_no_student_comes_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="Hugging Face config"):
        half_of(lowrank.open_model(trained_blocks()))
    one = tiny_transformer("bert")
    del one.encoder.layer[1]
    one.config.num_hidden_layers = 1
    one.save_pretrained(tmp_path / "one")
    with pytest.raises(UnsupportedModel, match="1 blocks"):
        half_of(lowrank.open_model(str(tmp_path / "one")))
