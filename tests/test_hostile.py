"""Files that were made to do harm: each is refused, and says why."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from builders import sentences, tiny_bert_folder, trained_blocks

from lowrank.artifacts import outside
from lowrank.artifacts.files import read_json
from lowrank.backends import Opening, open_model
from lowrank.backends.torch.huggingface import belongings
from lowrank.backends.torch.lora import is_tame
from lowrank.calibrate.data import load_calibration
from lowrank.calibrate.text import read_samples
from lowrank.calibrate.tokenize import open_tokenizer
from lowrank.errors import ArtifactError, CalibrationError, LowRankError, UnsupportedModel
from lowrank.report.terminal.terminal import harmless
from tools.fuzz import seeds

HOSTILE_NAMES = ["line\nbreak", "\x1b[31mred", "\u202eback", "nul\x00"]


def graph(folder: Path, change: Callable[[Any], None], beside: bool = True) -> Path:
    """A small graph that somebody has changed."""
    (seeds.graph_beside_data if beside else seeds.graph)(folder)
    proto = onnx.load(folder / "m.onnx", load_external_data=False)
    change(proto)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def entry(proto: Any, key: str) -> Any:
    return next(e for e in proto.graph.initializer[0].external_data if e.key == key)


@pytest.mark.parametrize(
    "location",
    [
        "{outside}",
        "../outside",
        "a/../../outside",
        "..\\outside",
        "C:\\outside",
        "",
        ".",
        "*/_ORT_MEM_ADDR_/*",
        "a\x00b",
    ],
)
def test_tensors_are_read_from_the_models_folder_alone(tmp_path: Path, location: str) -> None:
    (tmp_path / "outside").write_bytes(bytes(4096))
    (tmp_path / "m").mkdir()
    location = location.format(outside=tmp_path / "outside")
    path = graph(tmp_path / "m", lambda proto: setattr(entry(proto, "location"), "value", location))
    with pytest.raises(UnsupportedModel, match="outside the model's folder"):
        open_model(path)


def test_one_place_for_a_tensor(tmp_path: Path) -> None:
    def twice(proto: Any) -> None:
        proto.graph.initializer[0].external_data.add(key="location", value="../outside")

    with pytest.raises(UnsupportedModel, match="in another place"):
        open_model(graph(tmp_path, twice))


def test_sparse_tensors_are_looked_at_too(tmp_path: Path) -> None:
    def sparse(proto: Any) -> None:
        made = proto.graph.sparse_initializer.add(dims=[4])
        made.values.CopyFrom(proto.graph.initializer[0])
        made.values.external_data[0].value = "../outside"

    with pytest.raises(UnsupportedModel, match="outside the model's folder"):
        open_model(graph(tmp_path, sparse))


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "100000"), ("length", "100000"), ("offset", "-1"), ("length", "1")]
)
def test_places_that_are_not_in_the_file(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"should have|take 96; export"):
        open_model(graph(tmp_path, lambda proto: setattr(entry(proto, key), "value", value)))


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("dims", [[1 << 20, 1 << 20], [1 << 40], [2**62, 2**62], [6, 5], [-6, -4]])
def test_tensors_that_say_that_they_are_larger(tmp_path: Path, dims: list[int], beside: bool) -> None:
    def grow(proto: Any) -> None:
        proto.graph.initializer[0].dims[:] = dims

    with pytest.raises(UnsupportedModel, match="should hold|should have|take 120|negative size"):
        open_model(graph(tmp_path, grow, beside))


def test_tensors_without_numbers(tmp_path: Path) -> None:
    def empty(proto: Any) -> None:
        proto.graph.initializer[0].ClearField("raw_data")

    with pytest.raises(UnsupportedModel, match="should hold 24 numbers, and holds 0"):
        open_model(graph(tmp_path, empty, beside=False))


def test_operators_that_cannot_be_applied(tmp_path: Path) -> None:
    def turn(proto: Any) -> None:
        proto.graph.node[1].attribute[0].ints[:] = [2, 1, 0]

    with pytest.raises(UnsupportedModel, match="Transpose turn cannot take"):
        _ = open_model(graph(tmp_path, turn, beside=False)).weights


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "pt", "folder"])
def test_a_cache_of_links_is_read(tmp_path: Path, kind: str) -> None:
    """Hugging Face keeps files as blobs, and folders of links to them."""
    snapshot, blobs = tmp_path / "snapshots" / "0", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    makers = {"onnx": seeds.graph_beside_data, "safetensors": seeds.state_file, "pt": seeds.torch_file}
    makers.get(kind, tiny_bert_folder)(snapshot)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("../../blobs") / str(number))
    backend = open_model(snapshot if kind == "folder" else snapshot / f"m.{kind}")
    assert backend.weights and backend.read(backend.weights[0].name).size


def test_a_linked_file_of_numbers_is_run(tmp_path: Path) -> None:
    """The libraries read no links out of a folder, and no file with two names."""
    seeds.graph_beside_data(tmp_path)
    wanted = open_model(tmp_path / "m.onnx").weights
    os.link(tmp_path / "m.data", tmp_path / "second-name")
    linked = open_model(tmp_path / "m.onnx")
    assert np.array_equal(linked.read("a.weight"), seeds_weight(tmp_path)) and linked.weights == wanted


def seeds_weight(folder: Path) -> Any:
    """The first matrix of the graph that `seeds` makes, as outputs x inputs."""
    return np.frombuffer((folder / "m.data").read_bytes(), np.float32, 24).reshape(6, 4).T


def test_what_links_lead_to_is_not_copied_along(bert_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(bert_folder, folder)
    (tmp_path / "private").mkdir()
    (folder / "linked").symlink_to(tmp_path / "private")
    os.mkfifo(folder / "pipe.json")
    names = {path.name for path in belongings(folder)}
    assert "config.json" in names and not {"linked", "pipe.json"} & names


def bomb(path: Path, name: str) -> None:
    """An archive with a member of zeros that is a thousand times as large as the archive."""
    with zipfile.ZipFile(path) as old:
        members = {member: old.read(member) for member in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member, content in members.items():
            if member.endswith(name):
                content = bytes(4 << 20)
            new.writestr(member, content)


def test_archives_that_blow_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "FREE_BYTES", 1 << 20)
    for make, file, member in (
        (seeds.torch_file, "m.pt", "data/0"),
        (seeds.program, "m.pt2", "model.json"),
        (seeds.arrays, "in.npz", "input.npy"),
    ):
        make(tmp_path)
        bomb(tmp_path / file, member)
        with pytest.raises(LowRankError, match="too many for a file of"):
            if file == "in.npz":
                load_calibration(open_model(seeds.module()), tmp_path / file)
            else:
                open_model(tmp_path / file)


def test_text_that_blows_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "FREE_BYTES", 1 << 20)
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(bytes(4 << 20)))
    with pytest.raises(CalibrationError, match="holds more than"):
        read_samples(tmp_path / "t.txt.gz")


def test_a_number_repeated_to_any_shape(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match="too many for its size"):
        open_model(tmp_path / "m.pt")


@pytest.mark.parametrize("member", ["data/aotinductor/model/run.so", "extra/AOTInductor/x", "archive/code.py"])
def test_programs_with_compiled_code(tmp_path: Path, member: str) -> None:
    """torch would load it with the program."""
    seeds.program(tmp_path)
    with zipfile.ZipFile(tmp_path / "m.pt2", "a") as archive:
        first = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{first}/{member}", b"\x7fELF")
    with pytest.raises(UnsupportedModel, match="holds compiled code"):
        open_model(tmp_path / "m.pt2")


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "was-here",))

    np.savez(tmp_path / "in.npz", input=np.array([Payload()], dtype=object), allow_pickle=True)
    for given in (tmp_path / "in.npz", tmp_path):
        with pytest.raises(CalibrationError, match="holds an array of objects, which is a pickle and not read"):
            load_calibration(open_model(seeds.module()), given)
    assert not (tmp_path / "was-here").exists()


def test_pipes_and_folders_among_arrays_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(CalibrationError, match=r"a folder without \.npz files"):
        load_calibration(open_model(seeds.module()), tmp_path)


def test_arrays_that_say_that_they_are_larger(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 33, 6)})
    with zipfile.ZipFile(tmp_path / "in.npz", "w") as archive:
        archive.writestr("input.npy", header.getvalue() + bytes(96))
    with pytest.raises(CalibrationError, match="cannot be read as .npz"):
        load_calibration(open_model(seeds.module()), tmp_path / "in.npz")


@pytest.mark.parametrize(
    "shard", ["../m.safetensors", "/etc/passwd", "a/b", "", ".", "a\x00b", "x" * 5000, None, 1, []]
)
def test_shards_are_files_of_the_folder(bert_folder: Path, tmp_path: Path, shard: object) -> None:
    shutil.copytree(bert_folder, tmp_path / "m")
    (tmp_path / "m/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(UnsupportedModel, match="no file of its folder|is not there|not a shard index"):
        open_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "which no model has"),
        ({"num_hidden_layers": 4000}, "many more parts"),
        ({"num_labels": 10**9}, "which no model has"),
        ({"max_position_embeddings": 10**9}, "has the shape"),
        ({"intermediate_size": 10**12}, "has the shape"),
        ({"attn_implementation": "someone/kernel"}, "names code from a hub"),
        ({"text_config": {"experts_implementation": "someone/kernel"}}, "names code from a hub"),
    ],
)
def test_configs_that_ask_for_too_much(bert_folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    shutil.copytree(bert_folder, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnsupportedModel, match=message):
        open_model(tmp_path / "m")


def test_code_of_a_folder_does_not_run(bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, mark = tmp_path / "m", tmp_path / "was-here"
    shutil.copytree(bert_folder, folder)
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    names = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    for file in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | {"auto_map": names, "tokenizer_class": "Evil"}))
    assert open_model(folder).weights
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    assert open_tokenizer(folder).encode(sentences(3), 8, True)
    assert not mark.exists()


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "9" * 5000, "[" * 100_000, '"\\ud800"'])
def test_numbers_and_nesting_that_json_does_not_have(tmp_path: Path, value: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(f'{{"schema": "lowrank.plan/1.0", "groups": {value}}}')
    if "ud800" in value:
        assert harmless(read_json(path, "plan")["groups"]) == "\\ud800"
        return
    with pytest.raises(ArtifactError, match="cannot read"):
        read_json(path, "plan")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".onnx"])
def test_names_that_are_no_names(tmp_path: Path, name: str, suffix: str) -> None:
    if suffix == ".onnx":
        path = graph(tmp_path, lambda proto: setattr(proto.graph.initializer[0], "name", name), beside=False)
    else:
        from safetensors.torch import save_file

        path = tmp_path / f"m{suffix}"
        (torch.save if suffix == ".pt" else save_file)({name: torch.ones(4, 4)}, path)
    with pytest.raises(UnsupportedModel, match="which is no name") as told:
        open_model(path)
    assert str(told.value).isprintable()


def test_names_that_only_look_like_paths_or_markup(tmp_path: Path, cli: Any) -> None:
    names = ["../../a.weight", "[red]b[/].weight", "/c.weight", "[/]"]
    torch.save({name: torch.randn(8, 8) for name in names}, tmp_path / "m.pt")
    done = cli("compress", tmp_path / "m.pt", "--budget", "0.5", "-o", tmp_path / "out" / "run")
    assert done.code == 0, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "out"]
    shown = cli("analyze", tmp_path / "m.pt", "-o", tmp_path / "out" / "run").out
    assert all(name.removesuffix(".weight") in shown for name in names)


def test_codes_for_terminals_are_spelled_out() -> None:
    assert harmless("a\x1b[31mb\ud800\n") == "a\\x1b[31mb\\ud800\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 10**9}, "says rank 1,000,000,000"),
        ({"rank_pattern": {"0": 10**9}}, "says rank 1,000,000,000"),
        ({"r": "2"}, "no whole number"),
        ({"target_modules": "(a+)+$"}, "for ever"),
        ({"exclude_modules": "(.*)*x"}, "for ever"),
        ({"rank_pattern": {".*.*.*.*x": 2}}, "for ever"),
        ({"layer_replication": [[0, 10**9]]}, "layer_replication"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config"),
        ({"peft_type": "PROMPT_TUNING"}, "only adapters of the type 'LORA'"),
    ],
)
def test_adapters_that_ask_for_more(tmp_path: Path, change: Any, message: str) -> None:
    (tmp_path / "a").mkdir()
    seeds.adapter(tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnsupportedModel, match=message):
        open_model(seeds.module(), Opening(lora=str(tmp_path / "a")))


def test_patterns_that_people_write_are_tame() -> None:
    assert all(map(is_tame, [r".*\.(q|v)_proj", "all-linear", r"(.*\.)?layers\.\d+\.fc[12]", "^model.decoder.fc1"]))
    assert not any(map(is_tame, ["(a+)+", "(a|a)*b", "(a)\\1", "(?=a)", "a*a*a*a*b", "(a{1,9}){9}"]))


def test_a_state_dict_of_blocks_is_still_read(tmp_path: Path) -> None:
    """Nothing above refuses what torch writes: ties, views and scalars."""
    state = dict(trained_blocks().state_dict())
    state |= {
        "tied.weight": state["classifier.weight"],
        "view": state["layers.0.up.weight"][::2],
        "one": torch.tensor(1),
    }
    state["ids"] = torch.arange(64).expand((1, -1))
    torch.save(state, tmp_path / "m.pt")
    assert len(open_model(tmp_path / "m.pt").weights) >= 5
