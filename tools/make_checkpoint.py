"""Write a Llama-shaped checkpoint whose weights have known ranks, in bfloat16 shards.

    python tools/make_checkpoint.py bench/llama-7b
    python tools/make_checkpoint.py bench/small --layers 12 --hidden 1024 --intermediate 2752

Every projection is `U diag(s) V'` with orthogonal U and V (cosine transforms with random signs and orders), as many
singular values between 1 and 0.3 as its rank, and none beyond it but what rounding to bfloat16 adds. Their ranks come
to half of the parameters, so that `compress --budget 0.5` must find them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

KEEP = 0.5
SHARE = 0.9999
"""Of the budget that the ranks come to, so that rounding them never exceeds it."""
LAYERS_A_SHARD = 4


def shapes(hidden: int, intermediate: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of one block's projections."""
    square = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    return {
        **square,
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }


def known_ranks(layers: int, hidden: int, intermediate: int, seed: int) -> dict[str, int]:
    """The rank of each projection: at random, and pivoted factors of all of them hold half of the parameters."""
    rng = np.random.default_rng(seed)
    wanted = {
        f"model.layers.{layer}.{name}.weight": (shape, float(rng.uniform(0.12, 0.5)))
        for layer in range(layers)
        for name, shape in shapes(hidden, intermediate).items()
    }
    whole = sum(rows * cols for (rows, cols), _ in wanted.values())

    def at(scale: float) -> dict[str, int]:
        return {name: max(1, int(scale * share * min(shape))) for name, (shape, share) in wanted.items()}

    low, high = 0.0, 1.9
    for _ in range(60):
        middle = (low + high) / 2
        ranks = at(middle)
        spent = sum(r * (sum(wanted[n][0]) - r) for n, r in ranks.items())
        low, high = (middle, high) if spent <= SHARE * KEEP * whole else (low, middle)
    return at(low)


def matrix(rows: int, cols: int, rank: int, rng: np.random.Generator) -> torch.Tensor:
    """A matrix of a rank, in bfloat16."""
    import scipy.fft

    sparse = np.zeros((rows, cols), np.float32)
    places = rng.permutation(rows)[:rank], rng.permutation(cols)[:rank]
    sparse[places] = np.linspace(1.0, 0.3, rank) * rng.choice([-1.0, 1.0], rank)
    dense: Any = scipy.fft.idctn(sparse, norm="ortho", workers=2)
    signs = np.array([-1, 1], np.float32)
    dense *= rng.choice(signs, rows)[:, None]
    dense *= rng.choice(signs, cols)
    return torch.from_numpy(dense).to(torch.bfloat16)


def tensors(given: argparse.Namespace) -> Iterator[dict[str, torch.Tensor]]:
    """The content of each shard."""
    ranks = known_ranks(given.layers, given.hidden, given.intermediate, given.seed)
    rng = np.random.default_rng(given.seed + 1)
    table = torch.from_numpy(rng.standard_normal((given.vocab, given.hidden), np.float32) * 0.02).to(torch.bfloat16)
    ones = torch.ones(given.hidden, dtype=torch.bfloat16)
    yield {"model.embed_tokens.weight": table, "model.norm.weight": ones, "lm_head.weight": table.flip(0)}
    shard: dict[str, torch.Tensor] = {}
    for layer in range(given.layers):
        base = f"model.layers.{layer}"
        for name, shape in shapes(given.hidden, given.intermediate).items():
            key = f"{base}.{name}.weight"
            shard[key] = matrix(*shape, ranks[key], rng)
        shard |= {f"{base}.{name}.weight": ones.clone() for name in ("input_layernorm", "post_attention_layernorm")}
        if (layer + 1) % LAYERS_A_SHARD == 0 or layer + 1 == given.layers:
            yield shard
            shard = {}


def write(given: argparse.Namespace) -> None:
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    folder: Path = given.output
    folder.mkdir(parents=True, exist_ok=True)
    count = 1 - (-given.layers // LAYERS_A_SHARD)
    where: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(tensors(given), 1):
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in shard.items()}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in shard.values())
        print(f"{folder / file}", flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    heads = max(1, given.hidden // 128)
    LlamaConfig(
        vocab_size=given.vocab,
        hidden_size=given.hidden,
        intermediate_size=given.intermediate,
        num_hidden_layers=given.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    print(f"{total:,} bytes")


def parser() -> argparse.ArgumentParser:
    """The shape of a checkpoint; by default that of a model of 6.7 billion parameters."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("output", type=Path)
    found.add_argument("--layers", type=int, default=32)
    found.add_argument("--hidden", type=int, default=4096)
    found.add_argument("--intermediate", type=int, default=11008)
    found.add_argument("--vocab", type=int, default=32000)
    found.add_argument("--seed", type=int, default=0)
    return found


if __name__ == "__main__":
    write(parser().parse_args())
