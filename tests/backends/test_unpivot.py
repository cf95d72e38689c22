"""Pivoted factors as two factors or one matrix: the same function, in numbers that bear eight bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build
from builders import write_text
from torch import nn

import lowrank
from lowrank.backends import open_model
from lowrank.backends.base import Backend, signature_of
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.unpivot import without_pivoted_layers
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.structures.base import Replacement
from lowrank.core.structures.pivoted import PivotedFactors
from lowrank.core.truncation.directions import directions
from lowrank.core.truncation.pivoted import pivot
from lowrank.edge.graph_file import make_graph
from lowrank.edge.target import Target
from lowrank.evaluate.graph import FileModel
from lowrank.nn import LowRankLinear, PivotedLinear


def pivoted(dense: Backend, share: float) -> Backend:
    """Every projection with pivoted factors of a share of its rank."""
    made: dict[str, Replacement] = {}
    for weight in dense.weights:
        if weight.is_linear and weight.role == "projection" and weight.stack == 1:
            matrix = dense.read(weight.name)
            rank = max(1, int(share * weight.full_rank))
            made[weight.name] = Replacement(PivotedFactors().name, pivot(directions(matrix).truncate(matrix, rank)))
    return dense.rewrite(made)


@pytest.mark.parametrize("share", [0.25, 0.8])
@pytest.mark.parametrize("kind", ["bert", "graph"])
def test_the_function_stays(kind: str, share: float, tmp_path: Path) -> None:
    dense = open_model(build("bert"))
    if kind == "graph":
        dense.write_onnx(tmp_path / "bert.onnx")
        dense = open_model(tmp_path / "bert.onnx")
    small = pivoted(dense, share)
    other = small.without_pivots()
    assert other is not small
    feed = signature_of(dense).example(3, 7)
    wanted, found, exact = small.run(feed), other.run(feed), dense.run(feed)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max() < np.abs(wanted - exact).max()
    assert other.without_pivots() is other
    assert dense.without_pivots() is dense


def test_the_smaller_form_is_taken() -> None:
    low, high = PivotedLinear(24, 16, 4), PivotedLinear(24, 16, 14, side="input", heads=2, last=True)
    shared = PivotedLinear(24, 16, 4, bias=False)
    module = nn.ModuleDict({"low": low, "high": high, "one": shared, "same": shared})
    before = copy.deepcopy(module.state_dict())
    made: Any = without_pivoted_layers(module)
    assert isinstance(made["low"], LowRankLinear) and type(made["high"]) is nn.Linear
    assert made["one"] is made["same"] and made["one"].bias is None
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    x = torch.randn(5, 24)
    for name in module:
        torch.testing.assert_close(made[name](x), module[name](x), rtol=1e-4, atol=1e-5)
    plain = nn.Linear(3, 3)
    assert without_pivoted_layers(plain) is plain


@pytest.mark.slow
def test_eight_bits_are_near_the_exact_graph(bert_folder: Path, tmp_path: Path) -> None:
    settings = lowrank.Settings(calib=str(write_text(tmp_path / "text.txt", 40)))
    options: dict[str, Any] = {"settings": settings, "latency": False, "selector": Knapsack(structures=("pivoted",))}
    report = lowrank.compress(str(bert_folder), 0.8, output=tmp_path / "run", **options)
    assert any(note.startswith("model_int8.onnx: pivoted factors are two") for note in report.notes)
    small = lowrank.open_model(bert_folder).saved_in(tmp_path / "run", dict)
    assert isinstance(small, ModuleBackend)
    assert any(isinstance(layer, PivotedLinear) for layer in small.module.modules())
    signature = signature_of(small)
    feed = signature.example(4, 9)
    exact = FileModel(tmp_path / "run" / "model.onnx", signature).run(feed)
    # Exported later it has the same numbers of few bits.
    make_graph(small, tmp_path / "eight.onnx", Target(dtype="int8"))
    for path in (tmp_path / "run" / "model_int8.onnx", tmp_path / "eight.onnx"):
        assert np.abs(FileModel(path, signature).run(feed) - exact).max() < 0.1 * np.abs(exact).max()
