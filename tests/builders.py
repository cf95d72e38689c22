"""Matrices with known spectra, and tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.directions import directions
from lowrank.core.truncation.gram import Gram, Tokens


class OneByOne:
    """A stand-in for a model, which gives the outputs of one batch after the other."""

    def outputs(self, feed: Any) -> Any:
        """Those of one batch."""
        raise NotImplementedError

    def outputs_of(self, feeds: Any) -> Any:
        """Those of several."""
        return map(self.outputs, feeds)


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
    "or",
    "not",
    "very",
    "house",
    "garden",
]


def orthonormal(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((rows, cols)))[0]


def matrix_with(values: np.ndarray, rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """A rows x cols matrix with exactly these singular values."""
    rng = np.random.default_rng(seed)
    k = min(rows, cols)
    return orthonormal(rng, rows, k) * values @ orthonormal(rng, cols, k).T


def decaying(rows: int, cols: int, seed: int = 0, power: float = 1.0) -> np.ndarray:
    return matrix_with(np.arange(1, min(rows, cols) + 1) ** -power, rows, cols, seed)


def inputs(rng: np.random.Generator, tokens: int, width: int, condition: float = 1.0) -> np.ndarray:
    """Tokens whose second moment has this condition number (infinite: rank deficient)."""
    if np.isinf(condition):
        return rng.standard_normal((tokens, max(width // 2, 1))) @ rng.standard_normal((max(width // 2, 1), width))
    scales = np.logspace(0, -np.log10(condition) / 2, width)
    return rng.standard_normal((tokens, width)) * scales @ orthonormal(rng, width, width)


def gram_of(weight: np.ndarray, x: np.ndarray, side: str = "input") -> Gram:
    """The Gram of a layer with this weight on these inputs, from either side."""
    energy = float((x**2).sum())
    return Gram.of("input", x) if side == "input" else Gram.of("output", x @ weight.T, energy)


def made(moment: Gram | Tokens) -> Gram:
    """The Gram of what a backend shows of a batch."""
    return moment if isinstance(moment, Gram) else moment.gram()


def two_factors(matrix: np.ndarray, rank: int) -> Replacement:
    """What replaces a weight in the plain metric."""
    return Replacement("two_factor", directions(matrix).truncate(matrix, rank))


def shape_spectra_(module: nn.Module, power: float = 0.7) -> nn.Module:
    """Give every Linear a decaying spectrum, so that ranks mean something in a random model."""
    with torch.no_grad():
        for seed, child in enumerate(m for m in module.modules() if isinstance(m, nn.Linear)):
            rows, cols = child.weight.shape
            shaped = decaying(rows, cols, seed, power) * np.sqrt(min(rows, cols)) * 0.5
            child.weight.copy_(torch.from_numpy(shaped))
    return module


class Block(nn.Module):
    """A feed-forward block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Blocks(nn.Module):
    """Two numbered blocks and a classifier outside them."""

    def __init__(self, width: int = 16, hidden: int = 40) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, hidden) for _ in range(2))
        self.classifier = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)


def build_blocks() -> nn.Module:
    """What `--arch builders:build_blocks` names."""
    return Blocks()


class Two(nn.Module):
    """Reads two inputs of sizes that nothing tells."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(12, 16), nn.Linear(20, 16)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.left(a) * self.right(b)


def build_two() -> nn.Module:
    """What `--arch builders:build_two` names."""
    return Two()


def trained_blocks() -> nn.Module:
    return shape_spectra_(Blocks()).eval()


def saved_state(path: Path) -> Path:
    torch.save(trained_blocks().state_dict(), path)
    return path


def tiny_config(kind: str = "bert", **changes: Any) -> Any:
    import transformers as t

    common = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 64,
    }
    if kind == "bert":
        return t.BertConfig(**{**common, "max_position_embeddings": 64, **changes})
    if kind == "roberta":
        return t.RobertaConfig(
            **{**common, "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1, **changes}
        )
    if kind == "distilbert":
        return t.DistilBertConfig(
            dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=64, max_position_embeddings=64
        )
    if kind == "gpt2":
        return t.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64, **changes)
    if kind == "llama":
        return t.LlamaConfig(**{**common, "num_key_value_heads": 2, "max_position_embeddings": 64, **changes})
    if kind == "vit":
        vit = {key: value for key, value in common.items() if key != "vocab_size"}
        return t.ViTConfig(**vit, image_size=16, patch_size=8)
    raise ValueError(kind)


def tiny_transformer(kind: str = "bert", head: str = "") -> Any:
    import transformers as t

    config = tiny_config(kind)
    classes = {
        "bert": t.BertForSequenceClassification if head else t.BertModel,
        "roberta": t.RobertaModel,
        "distilbert": t.DistilBertModel,
        "gpt2": t.GPT2LMHeadModel,
        "llama": t.LlamaForCausalLM,
        "vit": t.ViTForImageClassification,
    }
    torch.manual_seed(0)
    model = classes[kind](config).eval()
    return shape_spectra_(model)


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer over `WORDS`, in the files that transformers reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


def write_letters(folder: Path, framed: bool = True) -> None:
    """A WordPiece tokenizer whose pieces are single letters, so that it reads any English in 64 pieces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    inner = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    if framed:
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", **names).save_pretrained(folder)


def tiny_bert_folder(folder: Path, kind: str = "bert", head: str = "") -> Path:
    tiny_transformer(kind, head).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, 12))) for _ in range(count)]


def write_text(path: Path, count: int = 60) -> Path:
    path.write_text("\n".join(sentences(count)), encoding="utf-8")
    return path


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def launched_together() -> list[str]:
    """How `accelerate` starts two processes on this machine, on a port that no other test has."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    start = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    return [*start, "--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no"]
