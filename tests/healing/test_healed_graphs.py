"""Graphs that come as files healed: their own nodes and initializers with other numbers, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from builders import read, write_text
from onnx import helper, numpy_helper

import lowrank
from lowrank.healing.training import Training

Cli = Callable[..., Any]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bert_folder: Path, cli: Cli) -> Path:
    """A folder with the graph of a small BERT, its tokenizer and some text."""
    from transformers import AutoModel

    monkeypatch.chdir(tmp_path)
    model = AutoModel.from_pretrained(bert_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            # Vectors that are alike are one in a graph, and stay as they are.
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert/tokenizer.json").write_bytes((bert_folder / "tokenizer.json").read_bytes())
    assert cli("export", "bert", "-o", "dense").code == 0
    (tmp_path / "dense/tokenizer.json").write_bytes((bert_folder / "tokenizer.json").read_bytes())
    write_text(tmp_path / "text.txt", 60)
    return tmp_path


COMPRESS = ("compress", "dense/model.onnx", "--budget", 0.5, "--calib", "text.txt", "-o", "run", "--no-latency")


def described(path: Path) -> tuple[list[Any], dict[str, Any], list[Any]]:
    """Nodes, the types and shapes of initializers, and inputs and outputs of a file."""
    graph = onnx.load(str(path)).graph
    nodes = [node.SerializeToString() for node in graph.node]
    shapes = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}
    return nodes, shapes, [value.SerializeToString() for value in (*graph.input, *graph.output)]


def numbers_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}


def test_a_graph_is_healed_and_stays_what_it_was(here: Path, cli: Cli) -> None:
    done = cli(*COMPRESS)
    assert done.code == 0, done.err
    path, before = here / "run/model.onnx", described(here / "run/model.onnx")
    old, records = numbers_of(path), read(here / "run/model/lowrank.json")["replaced"]
    worse = read(here / "run/report.json")["quality"]["relative_error"]
    healed = cli("heal", "run", "--steps", 200, "--no-latency")
    assert healed.code == 0, healed.err
    report = read(here / "run/report.json")
    (entry,) = report["healing"]
    assert entry["after"] < entry["before"] and report["quality"]["relative_error"] < worse
    assert report["parity"] and not report["problems"] and (here / "run/model_int8.onnx").is_file()
    assert described(path) == before
    changed = {name for name, array in numbers_of(path).items() if not np.array_equal(array, old[name])}
    factors = {tensor for record in records.values() for tensor in record["tensors"].values()}
    assert changed & factors and {name for name in changed - factors if old[name].ndim != 1} == set()
    assert changed - factors
    # Measured again it is the same, and it can be healed again.
    again = cli("evaluate", "-o", "run")
    assert again.code == 0, again.err
    assert read(here / "run/report.json")["parity"]
    assert read(here / "run/report.json")["quality"]["relative_error"] == pytest.approx(
        report["quality"]["relative_error"], rel=1e-3
    )
    assert cli("heal", "run", "--steps", 40, "--no-latency").code == 0
    second = read(here / "run/report.json")["healing"][1]
    assert second["before"] == pytest.approx(entry["after"], rel=1e-2)
    assert described(path) == before


def test_compress_heals_a_graph(here: Path) -> None:
    settings = lowrank.Settings(calib="text.txt")
    made = lowrank.compress(
        "dense/model.onnx", 0.5, output="run", settings=settings, latency=False, heal=Training(steps=100)
    )
    assert made.healing[0].kept and made.parity is not None


def test_what_a_graph_cannot_be_healed_with(here: Path, cli: Cli) -> None:
    for options, said in (
        (["--adapter", 2], "takes no adapter"),
        (["--quantize", "int8"], "cannot be trained"),
        (["--size", "1MB"], "cannot be trained"),
    ):
        refused = cli(
            *(a for a in COMPRESS if "--size" not in options or a not in ("--budget", 0.5)), "--heal", 1, *options
        )
        assert refused.code == 1 and said in refused.err, refused.err
        assert not (here / "run").exists()


def test_a_run_of_few_bits_is_refused(here: Path, cli: Cli) -> None:
    assert cli(*COMPRESS, "--quantize", "int8").code == 0
    before = (here / "run/model.onnx").read_bytes()
    refused = cli("heal", "run", "--steps", 20)
    assert refused.code == 1 and "a graph of few bits" in refused.err
    assert (here / "run/model.onnx").read_bytes() == before


def test_a_graph_of_one_batch_size_is_refused(here: Path, cli: Cli) -> None:
    proto = onnx.load("dense/model.onnx")
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(proto, "dense/model.onnx")
    refused = cli(*COMPRESS, "--heal", 1)
    assert refused.code == 1 and "takes batches of 4 alone" in refused.err, refused.err


def test_an_unknown_operator_is_named_before_anything_is_done(here: Path, cli: Cli) -> None:
    proto = onnx.load("dense/model.onnx")
    last = proto.graph.output[0].name
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for place in (place for place, name in enumerate(names) if name == last):
                names[place] = "inner"
    proto.graph.node.append(helper.make_node("Shrink", ["inner"], [last], name="odd", lambd=0.0))
    onnx.save(proto, "dense/model.onnx")
    refused = cli(*COMPRESS, "--heal", 1)
    assert refused.code == 1 and "Shrink (node odd)" in refused.err, refused.err
    assert not (here / "run").exists()
