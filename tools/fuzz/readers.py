"""Which function reads which file."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from . import mutate, seeds


@dataclass(frozen=True)
class Reader:
    """A file that is damaged, and what reads it."""

    name: str
    calls: str
    """What is called, for the table."""
    make: Callable[[Path], seeds.Files]
    file: str
    """The one that is damaged."""
    mutate: mutate.Mutator
    read: Callable[[Path], Any]
    """Of the folder."""
    slow: bool = False
    """Takes more than a few milliseconds."""

    def files(self) -> seeds.Files:
        """The valid files."""
        return _files(self.make)


@cache
def _files(make: Callable[[Path], seeds.Files]) -> seeds.Files:
    with tempfile.TemporaryDirectory() as folder:
        return make(Path(folder))


def _model(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from lowrank.backends import open_model

        backend = open_model(folder / name)
        return backend.weights, backend.skips, backend.signature, [backend.read(w.name) for w in backend.weights[:1]]

    return read


def _trainer_file(folder: Path) -> Any:
    from lowrank.backends import Opening, open_model
    from lowrank.backends.torch.fitted import fit_state_
    from lowrank.backends.torch.pickles import read_torch_file

    path = folder / "m.ckpt"
    found = [open_model(path, Opening(weights=name)).weights for name in (None, "ema")]
    content: Any = read_torch_file(path, unsafe_pickle=False)
    state = {n: t for n, t in content.weights.items() if not n.endswith(("_g", "_v"))}
    module = copy.deepcopy(_backend().module)
    return found, fit_state_(module, {"module.0.weight": module[0].weight.detach(), **state}, path, "seeds:module")


def _index(folder: Path) -> Any:
    from lowrank.backends.torch.huggingface import check_safetensors

    return check_safetensors(folder)


def _shards(folder: Path) -> Any:
    from lowrank.backends.checkpoint.location import Location
    from lowrank.backends.checkpoint.shards import open_shards

    found = open_shards(Location(str(folder)))
    return [found.tensor(name) for name in found.tensors]


def _config(folder: Path) -> Any:
    from lowrank.backends.torch.huggingface import check_safetensors, check_sizes, read_config

    check_sizes(folder, read_config(folder / "config.json"), check_safetensors(folder))


def _analysis(folder: Path) -> Any:
    from lowrank.artifacts import load_analysis

    return load_analysis(folder)


@cache
def _known(folder: Path) -> Any:
    return _analysis(folder)


def _plan(folder: Path) -> Any:
    from lowrank.artifacts import read_json
    from lowrank.core.budget import Budget
    from lowrank.pipeline.plans import read_plan

    path = folder / "plan.json"
    return read_plan(path, _known(folder), Budget.from_json(read_json(path, "plan").get("budget")))


def _saved(folder: Path) -> Any:
    import lowrank

    return lowrank.load(folder, arch=seeds.module)


def _samples(name: str, column: str | None = None) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from lowrank.calibrate.text import read_samples

        return read_samples(folder / name, column)

    return read


@cache
def _backend() -> Any:
    from lowrank.backends import open_model

    return open_model(seeds.module())


def _arrays(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from lowrank.calibrate.data import load_calibration

        return load_calibration(_backend(), folder / name)

    return read


def _beside(folder: Path) -> Any:
    from lowrank.backends import open_model
    from lowrank.errors import UnsupportedModel
    from lowrank.evaluate.tasks.model_files import class_names

    backend = open_model(folder / "m.onnx")
    signature, classes = backend.signature, class_names(backend, 3)
    # Such a file is a help that may be missing: what it says is taken, or not.
    if isinstance(signature, str) or signature.pooling != "cls" or "a" not in classes:
        raise UnsupportedModel("what lies beside the graph says less than it did")
    return signature, classes


def _tokens(folder: Path) -> Any:
    from lowrank.calibrate.tokenize import open_tokenizer

    return open_tokenizer(folder / "tokenizer.json").encode(seeds.LINES[:2], 16, True)


def _adapter(folder: Path) -> Any:
    from lowrank.backends.torch.lora import merge

    return merge(copy.deepcopy(_backend().module), folder)


def _timings(folder: Path) -> Any:
    from lowrank.pipeline.budgets.operator_times import read_table

    return read_table(folder / "table.json")


def _inspected(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from lowrank.errors import UnsupportedModel
        from lowrank.inspection import inspect

        found = inspect(folder / name)
        shown = json.dumps(found.to_json(), allow_nan=False)
        if found.kind in ("damaged", "pickle", "unknown", "empty", "json"):
            raise UnsupportedModel(found.what)
        return shown

    return read


def _options(folder: Path) -> Any:
    from lowrank.cli.app import app
    from lowrank.cli.run_file import expanded

    return expanded(["compress", "--config", str(folder / "run.yaml")], app)


SAFE, ONNX, JSON, ZIP, TEXT = mutate.of_safetensors, mutate.of_onnx, mutate.of_json, mutate.of_zip, mutate.of_text

READERS = (
    Reader("safetensors", "open_model", seeds.state_file, "m.safetensors", SAFE, _model("m.safetensors")),
    Reader("pt", "open_model", seeds.torch_file, "m.pt", ZIP, _model("m.pt")),
    Reader("pt-old", "open_model", seeds.old_torch_file, "m.pt", mutate.damaged, _model("m.pt")),
    Reader("trainer", "open_model", seeds.trainer_file, "m.ckpt", ZIP, _trainer_file),
    Reader("bin-index", "open_model", seeds.old_folder, "pytorch_model.bin.index.json", JSON, _model(""), slow=True),
    Reader("pt2", "open_model", seeds.program, "m.pt2", ZIP, _model("m.pt2"), slow=True),
    Reader("index", "check_safetensors", seeds.shards, "model.safetensors.index.json", JSON, _index),
    Reader("shards", "open_shards", seeds.shards, "model-0.safetensors", SAFE, _shards),
    Reader("shards-index", "open_shards", seeds.shards, "model.safetensors.index.json", JSON, _shards),
    Reader(
        "config",
        "read_config",
        seeds.transformers_folder,
        "config.json",
        JSON,
        _config,
        slow=True,
    ),
    Reader("onnx", "open_model", seeds.graph, "m.onnx", ONNX, _model("m.onnx")),
    Reader("onnx-data", "open_model", seeds.graph_beside_data, "m.onnx", ONNX, _model("m.onnx")),
    Reader("analysis", "load_analysis", seeds.run, "analysis.json", JSON, _analysis),
    Reader("spectra", "load_analysis", seeds.run, "analysis.safetensors", SAFE, _analysis),
    Reader("plan", "read_plan", seeds.run, "plan.json", JSON, _plan),
    Reader("record", "load", seeds.run, "model/lowrank.json", JSON, _saved),
    Reader("saved", "load", seeds.run, "model/model.safetensors", SAFE, _saved),
    Reader("timings", "read_table", seeds.timings, "table.json", JSON, _timings),
    Reader("txt", "read_samples", seeds.texts, "t.txt", TEXT, _samples("t.txt")),
    Reader("gz", "read_samples", seeds.texts, "t.txt.gz", mutate.damaged, _samples("t.txt.gz")),
    Reader("tsv", "read_samples", seeds.texts, "t.tsv", TEXT, _samples("t.tsv", "text")),
    Reader("csv", "read_samples", seeds.texts, "t.csv", TEXT, _samples("t.csv", "text")),
    Reader("jsonl", "read_samples", seeds.texts, "t.jsonl", TEXT, _samples("t.jsonl")),
    Reader("beside", "class_names", seeds.graph_of_a_folder, "config.json", JSON, _beside),
    Reader("pooling", "signature", seeds.graph_of_a_folder, "1_Pooling/config.json", JSON, _beside),
    Reader("foreign", "open_model", seeds.foreign_folder, "config.json", JSON, _model("")),
    Reader("npz", "load_calibration", seeds.arrays, "in.npz", ZIP, _arrays("in.npz")),
    Reader("npz-folder", "load_calibration", seeds.folder_of_arrays, "5.npz", ZIP, _arrays("")),
    Reader("tokenizer", "tokenize", seeds.tokenizer, "tokenizer.json", JSON, _tokens),
    Reader("adapter", "merge", seeds.adapter, "adapter_config.json", JSON, _adapter, slow=True),
    Reader("adapter-data", "merge", seeds.adapter, "adapter_model.safetensors", SAFE, _adapter, slow=True),
    Reader("run-file", "expanded", seeds.run_file, "run.yaml", TEXT, _options),
    Reader("inspect-safetensors", "inspect", seeds.state_file, "m.safetensors", SAFE, _inspected("m.safetensors")),
    Reader("inspect-pt", "inspect", seeds.torch_file, "m.pt", ZIP, _inspected("m.pt")),
    Reader("inspect-trainer", "inspect", seeds.trainer_file, "m.ckpt", ZIP, _inspected("m.ckpt")),
    Reader("inspect-onnx", "inspect", seeds.graph_beside_data, "m.onnx", ONNX, _inspected("m.onnx")),
    Reader("inspect-analysis", "inspect", seeds.run, "analysis.json", JSON, _inspected("analysis.json")),
    Reader("inspect-plan", "inspect", seeds.run, "plan.json", JSON, _inspected("plan.json")),
    Reader("inspect-report", "inspect", seeds.report, "report.json", JSON, _inspected("report.json")),
    Reader("inspect-npz", "inspect", seeds.arrays, "in.npz", ZIP, _inspected("in.npz")),
)
