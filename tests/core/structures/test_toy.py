"""A structure is one file and one entry of the registry: a toy one goes through all that the package does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from builders import read, tiny_bert_folder, trained_blocks, write_text
from toy import NAME, ColumnFactors

import lowrank
from lowrank.artifacts import load_analysis
from lowrank.backends import open_model
from lowrank.backends.onnx.read_back import read_graph
from lowrank.backends.torch.read_back import read_finished
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.selection.timings import Timings, sizes_for
from lowrank.core.structures import STRUCTURES, factorize_option, structure_named
from lowrank.core.structures.base import Option
from lowrank.core.weight import Group
from lowrank.pipeline import analyze_weights

ONLY = lowrank.Knapsack(structures=(NAME,))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one entry."""
    monkeypatch.setitem(STRUCTURES, NAME, "toy:ChosenInputs")


@pytest.fixture
def blocks(registered: None) -> tuple[Any, Analysis]:
    """Two feed-forward blocks and their analysis, without data."""
    dense = open_model(trained_blocks())
    return dense, Analysis(analyze_weights(dense, dense.weights, {}))


def table_for(analysis: Analysis) -> Timings:
    """A product takes as long as it has numbers, and the rest next to nothing."""
    groups = [(group, [analysis[name].weight for name in group.weights]) for group in analysis.groups.values()]
    points = {
        name: [(a, b, a * b / 1e3 if name == "product" else 1e-3) for a, b in sizes]
        for name, sizes in sizes_for(groups, 1).items()
    }
    return Timings(points=points, tokens=16, threads=1, step=1)


def chosen(run: Path) -> set[str]:
    return {group["structure"] for group in read(run / "plan.json")["groups"]}


def factors_in(graph: Path) -> int:
    """How many initializers of a graph are factors."""
    names = [each.name for each in onnx.load(graph).graph.initializer]
    return sum(name.endswith((".left.weight", ".right.weight")) for name in names)


def test_factors_are_columns_and_errors_are_true(blocks: tuple[Any, Analysis]) -> None:
    dense, analysis = blocks
    for record in analysis.weights:
        name, matrix = record.weight.name, dense.read(record.weight.name)
        for rank in (1, record.break_even):
            option = structure_named(NAME).at(Group(name, (name,)), analysis, rank)
            replacement = factorize_option(option, analysis, dense)[name]
            assert isinstance(replacement.factors, ColumnFactors)
            assert all((column == matrix.T).all(1).any() for column in replacement.factors.left.T)
            lost = np.linalg.norm(matrix - replacement.dense(record.weight)) / np.linalg.norm(matrix)
            assert option.error == pytest.approx(lost**2, abs=1e-12)
            # No factors of this rank lose less than the truncation.
            assert option.error >= record.plain.tail_energy[rank] - 1e-12


@pytest.mark.parametrize("kind", ["params", "bytes", "macs", "latency", "size"])
def test_selection(blocks: tuple[Any, Analysis], kind: Any) -> None:
    _, analysis = blocks
    budget = Budget.size(2 * analysis.dense_params) if kind == "size" else Budget(kind, 0.4)
    table = table_for(analysis)
    plan = lowrank.select(analysis, budget, lowrank.Knapsack(structures=(NAME,), timings=table))
    assert plan.meets_budget and NAME in {option.structure for option in plan.options}
    every = lowrank.select(analysis, budget, lowrank.Knapsack(timings=table))
    # It costs what two factors do and loses more, so among all structures it is not chosen.
    assert NAME not in {option.structure for option in every.options}
    assert sum(o.error for o in every.options) <= sum(o.error for o in plan.options)


@pytest.mark.slow
def test_torch_to_onnx_and_smaller(tmp_path: Path) -> None:
    tiny_bert_folder(tmp_path / "model")
    settings = lowrank.Settings(calib=str(write_text(tmp_path / "text.txt", 30)))
    run, cut = tmp_path / "run", tmp_path / "cut"
    report = lowrank.compress(tmp_path / "model", 0.5, output=run, selector=ONLY, settings=settings, latency=False)
    assert report.targets.keep_ratio <= 0.5 and report.parity.relative < 1e-4
    replaced = [group for group in read(run / "plan.json")["groups"] if group["structure"] == NAME]
    assert replaced and factors_in(run / "model.onnx") == 2 * len(replaced)
    assert "inputs chosen" in (run / "report.html").read_text(encoding="utf-8")
    # The model loads, and is read back as what it is.
    assert isinstance(lowrank.load(run), torch.nn.Module)
    _, factors = read_finished(run / "model", load_analysis(run), lowrank.Opening(), None)
    assert len(factors) == len(replaced)
    assert all(isinstance(each.factors, ColumnFactors) for each in factors.values())
    # And it can be cut again without the original.
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    smaller = lowrank.truncate(run, 0.3, output=cut, latency=False)
    assert smaller.targets.keep_ratio <= 0.3 and smaller.parity.relative < 1e-4
    assert chosen(cut) <= {NAME, "dense"} and "inputs chosen" in (cut / "report.html").read_text(encoding="utf-8")


def test_onnx_in_and_out(tmp_path: Path) -> None:
    path = lowrank.export(tiny_bert_folder(tmp_path / "model"), tmp_path / "dense")
    settings = lowrank.Settings(calib="none")
    run, cut = tmp_path / "run", tmp_path / "cut"
    report = lowrank.compress(path, 0.5, output=run, selector=ONLY, settings=settings, latency=False)
    replaced = [group for group in read(run / "plan.json")["groups"] if group["structure"] == NAME]
    assert report.targets.keep_ratio <= 0.5 and report.parity.relative < 1e-4
    assert replaced and factors_in(run / "model.onnx") == 2 * len(replaced)
    assert "inputs chosen" in (run / "report.html").read_text(encoding="utf-8")
    options = [Option(g["name"], NAME, g["rank"], g["cost"], 0.0) for g in replaced]
    tensors = {name: each["tensors"] for name, each in read(run / "model/lowrank.json")["replaced"].items()}
    graph = read_graph(run / "model.onnx", load_analysis(run), options, tensors, run / "tokenizer.json")
    assert not graph.fixed and all(isinstance(each.factors, ColumnFactors) for each in graph.replacements.values())
    smaller = lowrank.truncate(run, 0.3, output=cut, latency=False)
    assert smaller.targets.keep_ratio <= 0.3 and smaller.parity.relative < 1e-4 and chosen(cut) <= {NAME, "dense"}
    session = onnxruntime.InferenceSession(cut / "model.onnx")
    assert session.get_outputs()[0].name == "last_hidden_state"
