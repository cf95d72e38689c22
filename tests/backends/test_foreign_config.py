"""A config.json that is not of transformers beside weights: they are read by their names, and that is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lowrank.backends import open_model
from lowrank.errors import UnsupportedModel
from lowrank.inspection import inspect

CONTENTS = [{"hidden": 32, "architecture": "ours"}, {"model_type": None}]


def weights_in(folder: Path, content: object, name: str = "model.safetensors") -> Path:
    tensors = {f"layers.{i}.up.weight": torch.randn(32, 16) for i in range(2)}
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        save_file(tensors, folder / name)
    (folder / "config.json").write_text(json.dumps(content))
    return folder / name


@pytest.mark.parametrize("content", CONTENTS)
def test_weights_beside_a_foreign_config_are_read_by_name(content: object, tmp_path: Path) -> None:
    path = weights_in(tmp_path, content)
    for model in (path, tmp_path):
        backend = open_model(model)
        assert [weight.name for weight in backend.weights] == ["layers.0.up.weight", "layers.1.up.weight"]
        assert "names no model type" in backend.source["notes"][0] and "--arch" in backend.source["notes"][0]


def test_a_folder_with_a_torch_file_and_a_foreign_config(tmp_path: Path) -> None:
    weights_in(tmp_path, {"n_layer": 2}, "pytorch_model.bin")
    assert len(open_model(tmp_path).weights) == 2


def test_inspect_does_not_call_it_a_model_of_transformers(tmp_path: Path) -> None:
    path = weights_in(tmp_path, {"n_layer": 2})
    found = inspect(tmp_path)
    assert found.kind == "weights-folder" and str(path) in found.next[0]


@pytest.mark.parametrize("content", ['{"model_type": "unheard-of"}', "{", "{}", "[]"])
def test_a_config_that_should_be_right_is_refused_as_before(content: str, tmp_path: Path) -> None:
    path = weights_in(tmp_path, {})
    path.with_name("config.json").write_text(content)
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        open_model(path)
