"""A tiny valid file of every kind that is read."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Files = dict[str, bytes]


def _made(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def module() -> nn.Module:
    """Two layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()


def state_file(folder: Path) -> Files:
    from safetensors.torch import save_file

    save_file(module().state_dict(), folder / "m.safetensors", {"format": "pt"})
    return _made(folder)


def torch_file(folder: Path) -> Files:
    torch.save(module().state_dict(), folder / "m.pt")
    return _made(folder)


def old_torch_file(folder: Path) -> Files:
    torch.save(module().state_dict(), folder / "m.pt", _use_new_zipfile_serialization=False)
    return _made(folder)


def trainer_file(folder: Path) -> Files:
    """Weights with a prefix and two of them as parts, an average, options, scores."""
    state = module().state_dict()
    gain = state.pop("0.weight")
    state |= {"0.weight_g": gain.norm(dim=1, keepdim=True), "0.weight_v": gain}
    content = {
        "model": {f"module.{name}": tensor for name, tensor in state.items()},
        "ema": {"shadow": state, "decay": 0.9},
        "best": np.float64(0.5),
        "step": torch.tensor(3),
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(content, folder / "m.ckpt")
    return _made(folder)


def old_folder(folder: Path) -> Files:
    """A folder of Hugging Face with torch files, their index, and a file of other things."""
    made = transformers_folder(folder)
    from safetensors.torch import load

    state = load(made["model.safetensors"])
    place = {name: f"pytorch_model-{number % 2}.bin" for number, name in enumerate(state)}
    for shard in set(place.values()):
        torch.save({f"module.{n}": t for n, t in state.items() if place[n] == shard}, folder / shard)
    index = {"weight_map": {f"module.{name}": shard for name, shard in place.items()}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"no weights")
    return _made(folder)


def program(folder: Path) -> Files:
    shape = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(module(), (torch.zeros(2, 6),), dynamic_shapes=shape), folder / "m.pt2")
    return _made(folder)


def shards(folder: Path) -> Files:
    from safetensors.torch import save_file

    state, place = module().state_dict(), {}
    for number, name in enumerate(state):
        place[name] = f"model-{number % 2}.safetensors"
    for shard in set(place.values()):
        save_file({n: t for n, t in state.items() if place[n] == shard}, folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return _made(folder)


def transformers_folder(folder: Path) -> Files:
    import transformers

    config = transformers.BertConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        vocab_size=16,
        max_position_embeddings=16,
        architectures=["BertModel"],
    )
    transformers.BertModel(config).save_pretrained(folder)
    return _made(folder)


def _graph() -> Any:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((6, 4)).astype(np.float32), "a.weight"),
        numpy_helper.from_array(rng.standard_normal((4, 3)).astype(np.float32), "b.weight"),
        numpy_helper.from_array(np.array([2, 2, -1]), "shape"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight"], ["h"], "first"),
        helper.make_node("Transpose", ["b.weight"], ["t"], "turn", perm=[1, 0]),
        helper.make_node("Gemm", ["h", "t"], ["y"], "second", transB=1),
        helper.make_node("Reshape", ["b.weight", "shape"], ["r"], "shaped"),
        helper.make_node("Identity", ["r"], ["z"], "same"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def graph(folder: Path) -> Files:
    (folder / "m.onnx").write_bytes(_graph().SerializeToString())
    return _made(folder)


def graph_beside_data(folder: Path) -> Files:
    import onnx

    onnx.save(_graph(), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return _made(folder)


def graph_of_a_folder(folder: Path) -> Files:
    """A graph with what says what its outputs are: labels, and how hidden states are pooled."""
    (folder / "m.onnx").write_bytes(_graph().SerializeToString())
    labels = {"architectures": ["AForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}
    (folder / "config.json").write_text(json.dumps({**labels, "vocab_size": 3, "hidden_size": 4, "num_labels": 3}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 3, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return _made(folder)


def foreign_folder(folder: Path) -> Files:
    """Weights beside a config.json that is not of transformers."""
    from safetensors.torch import save_file

    save_file(module().state_dict(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"arch": "mlp", "width": 6, "layers": ["0", "2"]}))
    return _made(folder)


def run(folder: Path) -> Files:
    """An analysis with activations, a plan, and the compressed model."""
    import lowrank
    from lowrank.artifacts import write_json
    from lowrank.backends import open_model
    from lowrank.pipeline.plans import factorize

    arrays(folder)
    settings = lowrank.Settings(targets=["all"], calib=str(folder / "in.npz"))
    analysis = lowrank.analyze(module(), settings=settings, output=folder)
    plan = lowrank.select(analysis, 0.9)
    write_json(folder / "plan.json", "plan", plan.to_json())
    backend = open_model(module())
    (folder / "model").mkdir()
    backend.rewrite(factorize(backend, analysis, plan)).save(folder / "model")
    return _made(folder)


def arrays(folder: Path) -> Files:
    np.savez(folder / "in.npz", input=np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32))
    return _made(folder)


def folder_of_arrays(folder: Path) -> Files:
    """Samples of unlike length, a file for each length."""
    rng = np.random.default_rng(0)
    for rows in (3, 5):
        np.savez(folder / f"{rows}.npz", input=rng.standard_normal((rows, 6)).astype(np.float32))
    return _made(folder)


LINES = [f"{a} {b} sat on the {c}" for a in ("a", "the") for b in ("cat", "dog") for c in ("mat", "house", "tree")]


def texts(folder: Path) -> Files:
    lines = "\n".join(LINES)
    (folder / "t.txt").write_text(lines)
    (folder / "t.txt.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    (folder / "t.tsv").write_text("id\ttext\n" + "\n".join(f"{i}\t{line}" for i, line in enumerate(LINES)))
    (folder / "t.csv").write_text("id,text\n" + "\n".join(f'{i},"{line}"' for i, line in enumerate(LINES)))
    (folder / "t.jsonl").write_text("\n".join(json.dumps({"id": i, "text": line}) for i, line in enumerate(LINES)))
    return _made(folder)


def tokenizer(folder: Path) -> Files:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for line in LINES for word in line.split()})
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return _made(folder)


def adapter(folder: Path) -> Files:
    import peft

    config = peft.LoraConfig(r=2, target_modules=["0", "2"], lora_alpha=4)
    made: Any = peft.get_peft_model(module(), config)  # pyright: ignore[reportArgumentType]
    made.save_pretrained(str(folder))
    return {name: content for name, content in _made(folder).items() if name != "README.md"}


def timings(folder: Path) -> Files:
    points = {"product": [[6, 4, 1.0], [4, 3, 0.5]], "concat": [[0, 4, 0.1]]}
    table = {"points": points, "tokens": 16, "threads": 1, "dtype": "float32", "step": 2, "machine": "", "whole": 2.0}
    (folder / "table.json").write_text(json.dumps(table))
    return _made(folder)


def run_file(folder: Path) -> Files:
    lines = ("model: m.pt  # small", "budget: 0.5", "targets: [projections, head]", "timing: no", "include:\n- 'a.*'")
    (folder / "run.yaml").write_text("\n".join(lines) + "\n")
    return _made(folder)


def report(folder: Path) -> Files:
    content = {
        "schema": "lowrank.report/1.0",
        "targets": {"params_before": 8, "params_after": 4, "keep_ratio": 0.5},
        "model": {"params_before": 8, "params_after": 4},
        "budget": {"kind": "params", "limit": 0.5, "reached": 0.5},
        "error": {"relative": 0.1, "per_weight": {"a": 0.1}},
        "healing": [],
        "provenance": {"command": ["lowrank", "compress"]},
    }
    (folder / "report.json").write_text(json.dumps(content))
    return _made(folder)
