"""The tiny models of `snapshot.py`, and what is done with each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

WORDS = [
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "a",
    "mat",
    "tree",
    "big",
    "small",
    "red",
    "blue",
    "and",
    "not",
]
TABLE_SIZES = (1, *range(8, 129, 8))

COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {**COMMON, "vocab_size": 64, "max_position_embeddings": 64}
DECODER = {**TEXT, "num_key_value_heads": 2}


@dataclass(frozen=True)
class Model:
    """A model of transformers, or one that `prepare` writes by itself."""

    kind: str = ""
    """Its class without the prefix that the config has, too: `Bert Model`."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    options: str = "{model} --calib text.txt"
    """Of its analysis."""
    path: str = "model"
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """Shapes of calibration inputs, for a model that does not read text."""
    shard: str = "5GB"


ARRAYS = "{model} --calib inputs.npz"
MODELS = {
    "bert": Model("Bert Model", TEXT),
    "classifier": Model("Bert ForSequenceClassification", TEXT),
    "roberta": Model("Roberta Model", {**TEXT, "max_position_embeddings": 66, "pad_token_id": 1}),
    "albert": Model("Albert Model", {**TEXT, "embedding_size": 16}),
    "gpt2": Model("GPT2 LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}),
    "llama": Model("Llama ForCausalLM", DECODER),
    "streamed": Model("Llama ForCausalLM", DECODER, "{model} --calib text.txt --stream", shard="40KB"),
    "mixtral": Model("Mixtral ForCausalLM", {**DECODER, "num_hidden_layers": 1, "num_local_experts": 4}),
    "t5": Model(
        "T5 ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 64},
    ),
    "vit": Model(
        "ViT ForImageClassification",
        {**COMMON, "image_size": 16, "patch_size": 8},
        ARRAYS,
        inputs={"pixel_values": (40, 3, 16, 16)},
    ),
    "resnet": Model(
        "ResNet ForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic", "num_labels": 4},
        ARRAYS + " --targets conv",
        inputs={"pixel_values": (40, 3, 32, 32)},
    ),
    "wav2vec2": Model(
        "Wav2Vec2 ForCTC",
        {
            **{**COMMON, "num_hidden_layers": 1, "vocab_size": 32},
            **{"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2},
            **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
        },
        "{model} --calib none",
    ),
    "state": Model(options=ARRAYS + " --arch snapshot_cases:blocks", path="model.pt", inputs={"x": (40, 5, 16)}),
    "graph": Model(options=ARRAYS, path="model.onnx", inputs={"x": (40, 5, 16)}),
    "live": Model(options=ARRAYS + " --arch snapshot_cases:blocks", path="model.pt", inputs={"x": (40, 5, 16)}),
}


class Block(nn.Module):
    """A feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 40), nn.Linear(40, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what two layers make of something."""
        return x + self.down(torch.relu(self.up(x)))


class Blocks(nn.Module):
    """Two blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.classifier = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the classes."""
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)


def blocks() -> nn.Module:
    """What --arch names."""
    return Blocks()


def shaped(model: nn.Module) -> nn.Module:
    """A model whose matrices have spectra that fall, so that ranks mean something, and whose biases are not zero."""
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=drawn)
            elif parameter.dim() in (2, 3) and "conv" not in name:
                left, _, right = torch.linalg.svd(torch.randn(parameter.shape, generator=drawn), full_matrices=False)
                rank = left.shape[-1]
                values = 0.5 * rank**0.5 * torch.arange(1, rank + 1) ** -0.7
                parameter.copy_(left * values @ right)
            elif parameter.dim() == 4:
                parameter.normal_(0, 0.2, generator=drawn)
    return model.eval()


def write_text(path: Path, count: int = 40) -> None:
    """Sentences of words drawn at random."""
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, size=rng.integers(3, 12))) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of these words, in the files that transformers reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)


def write_graph(path: Path) -> None:
    """The blocks as another exporter could write them."""
    from onnx import TensorProto, helper, numpy_helper, save

    state = {name: value.detach().numpy() for name, value in shaped(Blocks()).state_dict().items()}
    nodes, last = [], "x"
    for number in range(2):
        for layer, source in (("up", last), ("down", f"{number}.relu")):
            prefix = f"layers.{number}.{layer}"
            state[f"{prefix}.weight"] = np.ascontiguousarray(state[f"{prefix}.weight"].T)
            nodes.append(helper.make_node("MatMul", [source, f"{prefix}.weight"], [f"{prefix}.product"]))
            nodes.append(helper.make_node("Add", [f"{prefix}.product", f"{prefix}.bias"], [f"{prefix}.out"]))
            if layer == "up":
                nodes.append(helper.make_node("Relu", [f"{prefix}.out"], [f"{number}.relu"]))
        nodes.append(helper.make_node("Add", [last, f"layers.{number}.down.out"], [f"{number}.sum"]))
        last = f"{number}.sum"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    numbers = [numpy_helper.from_array(value, name) for name, value in state.items() if "classifier" not in name]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", "sequence", 16))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", "sequence", 16))
    graph = helper.make_graph(nodes, "graph", [x], [y], numbers)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def write_table(path: Path) -> None:
    """Timings as `lowrank bench --table` writes them, by a formula."""
    pairs = [(first, second) for first in TABLE_SIZES for second in TABLE_SIZES]
    inside = [(heads, width) for heads in (2, 4, 8) for width in (1, 2, 4, 8)]
    points = {
        "product": [(a, b, 1 + a * b / 512) for a, b in pairs],
        "concat": [(0, a, 1 + a / 64) for a in TABLE_SIZES],
        "activation": [(0, a, 1 + a / 32) for a in TABLE_SIZES],
        "scores": [(a, b, 2 + a * b / 8) for a, b in inside],
        "mixture": [(a, b, 2 + a * b / 8) for a, b in inside],
    }
    known = {"tokens": 64, "threads": 1, "dtype": "float32", "step": 16, "machine": "none", "runtime": "a formula"}
    path.write_text(json.dumps({"points": points, **known, "whole": None}), encoding="utf-8")


def prepare(name: str, folder: Path) -> None:
    """Write a model, with what it is calibrated on and a table of timings."""
    import transformers

    model = MODELS[name]
    write_text(folder / "text.txt")
    write_table(folder / "table.json")
    rng = np.random.default_rng(1)
    arrays = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in model.inputs.items()}
    if arrays:
        np.savez(folder / "inputs.npz", **arrays)  # pyright: ignore[reportArgumentType]
    if model.path == "model.onnx":
        write_graph(folder / model.path)
    elif model.path == "model.pt":
        torch.save(shaped(Blocks()).state_dict(), folder / model.path)
    else:
        prefix, kind = model.kind.split()
        config = getattr(transformers, f"{prefix}Config")(**model.config)
        made = shaped(getattr(transformers, prefix + kind)(config))
        made.save_pretrained(folder / model.path, max_shard_size=model.shard)  # pyright: ignore[reportCallIssue]
        if not arrays:
            write_tokenizer(folder / model.path)


def in_place() -> dict[str, Any]:
    """A live module, changed by `compress_`."""
    from safetensors.torch import save_file

    import lowrank

    model, x = shaped(Blocks()), torch.from_numpy(np.load("inputs.npz")["x"])
    done = lowrank.compress_(model, 0.5, calib=x)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, "in_place.safetensors")
    return {"printed": str(done), "module": str(model), "output": float(model(x).detach().double().pow(2).sum())}


def by_functions() -> dict[str, Any]:
    """The verbs as functions, with objects for options."""
    import lowrank

    model, settings = shaped(Blocks()), lowrank.Settings(calib="inputs.npz")
    analysis = lowrank.analyze(model, settings=settings)
    chosen = lowrank.select(analysis, lowrank.Budget("macs", 0.5), lowrank.Knapsack(multiple=2))
    report = lowrank.compress(model, lowrank.Budget.error(0.2), output="made", settings=settings, latency=False)
    small: Any = lowrank.load("made", arch=Blocks)
    return {
        "plan": chosen.to_json(),
        "keep": report.targets["keep_ratio"],
        "loaded": {name: list(value.shape) for name, value in small.state_dict().items()},
        "types": sorted(type(part).__qualname__ for part in small.modules()),
    }


def names() -> dict[str, Any]:
    """What is at the top of the package, and what it takes."""
    import lowrank

    found: dict[str, Any] = {}
    for name in lowrank.__all__:
        value = getattr(lowrank, name)
        known = callable(value) and value is not lowrank.LowRankError
        found[name] = re.sub(" at 0x[0-9a-f]+", "", str(signature(value))) if known else "takes nothing"
    return found


HALF = "compress --budget 0.5"
TWO = "compress --budget 0.5 --structures two_factor"
LATENCY = "compress --latency 0.7 --table table.json"
PLAN = "select --budget 0.5 --selector uniform --multiple 4;compress --plan run/plan.json"
CASES: dict[str, dict[str, str | Callable[[], dict[str, Any]]]] = {
    "bert": {
        "budget": f"{HALF};evaluate;inspect run --json;inspect run",
        "error": "compress --error 0.2 --json",
        "size": "compress --size 0.7",
        "latency": LATENCY,
        "neurons": f"{HALF} --structures neurons,product",
        "heal": f"{TWO};heal run",
        "adapter": f"{TWO};heal run --adapter 2 --fold exact",
        "truncate": f"{HALF};truncate run --budget 0.3",
        "elastic": "export {model} -o elastic --elastic 0.3,0.5 --calib text.txt",
        "plan": PLAN,
        "drop": "compress --task fidelity --max-drop 0.05",
        "sweep": "sweep {model} --keeps 0.5 --distil 0 --calib text.txt --write lowrank-0.5",
        "hub": f"{HALF};export run -o hub --hub",
        "refused": "compress --budget 0.0001;compress;compress --budget 0.5 --include nowhere;heal nothing;inspect run",
    },
    "classifier": {
        "macs": f"{HALF} --of macs",
        "int4": f"{HALF} --quantize int4",
        "energy": f"{HALF} --selector energy",
        "head": f"{HALF} --targets projections,head,embeddings",
        "adapter": f"{HALF};heal run --adapter 2",
    },
    "roberta": {
        "bytes": f"{HALF} --of bytes",
        "uniform": f"{HALF} --selector uniform --multiple 4",
        "int8": f"{HALF} --quantize int8 --profile ort",
        "two_factor": f"{TWO};truncate run --budget 0.3",
    },
    "albert": {
        "budget": HALF,
        "size": "compress --size 0.9 --targets all",
        "drop": "compress --task fidelity --max-drop 0.1",
        "error": "compress --error 0.3 --no-refit",
    },
    "gpt2": {
        "past": f"{HALF} --with-past",
        "latency": LATENCY,
        "heal": f"{HALF};heal run",
        "elastic": "export {model} -o elastic --elastic 0.3,0.5 --calib none",
        "adapter": f"{TWO};heal run --adapter 2 --fold rank;inspect run --json",
    },
    "llama": {
        "rotary": f"{HALF} --structures rotary,neurons",
        "shared": f"{HALF} --structures shared",
        "plan": PLAN,
        "past": f"{HALF} --with-past --quantize int8",
        "ort": f"{HALF} --profile ort",
        "size": "compress --size 0.6",
    },
    "streamed": {
        "budget": f"{HALF} --stream",
        "bytes": f"{HALF} --of bytes --stream",
        "error": "compress --error 0.2 --stream",
        "relative": f"{HALF} --selector relative-error --stream",
    },
    "mixtral": {"budget": HALF, "two_factor": f"{TWO} --of macs", "int8": f"{HALF} --quantize int8"},
    "t5": {
        "fp16": f"{HALF} --quantize fp16",
        "two_factor": f"{TWO} --profile ort",
        "truncate": f"{HALF} --of macs;truncate run --budget 0.3",
    },
    "vit": {
        "bytes": f"{HALF} --of bytes",
        "heal": f"{HALF};heal run",
        "drop": "compress --task fidelity --max-drop 0.1",
        "elastic": "export {model} -o elastic --elastic 0.3,0.5 --calib inputs.npz",
    },
    "resnet": {
        "spatial": f"{HALF} --structures spatial",
        "macs": f"{HALF} --of macs",
        "energy": f"{TWO};evaluate",
    },
    "wav2vec2": {
        "energy": f"{HALF} --selector energy",
        "fp16": f"{HALF} --quantize fp16",
        "error": "compress --error 0.2",
    },
    "state": {
        "uniform": f"{HALF} --selector uniform",
        "pivoted": f"{HALF} --structures pivoted",
        "heal": f"{TWO};heal run",
        "plan": PLAN,
        "truncate": f"{HALF};truncate run --error 0.6 --json",
    },
    "graph": {
        "budget": f"{HALF};evaluate;inspect run --json",
        "int4": f"{HALF} --quantize int4",
        "fp16": f"{HALF} --quantize fp16",
        "drop": "compress --task fidelity --max-drop 0.05 --structures two_factor",
    },
    "live": {"in_place": in_place, "functions": by_functions, "names": names},
}
"""For each model its cases: command lines with semicolons between them, each begun with the analysis as it was."""
