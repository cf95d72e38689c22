"""A GPT in minGPT's form, for `--arch`, and its sorting model from a JSON of base64 tensors.

python tools/sort_gpt.py gpt-nano-sort-model.json sort.pt
PYTHONPATH=tools lowrank compress sort.pt --arch sort_gpt:build --budget 0.5
"""

from __future__ import annotations

import base64
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LAYERS, HEADS, WIDTH, VOCABULARY, CONTEXT = 3, 3, 48, 3, 11
DIGITS = 6


class Attention(nn.Module):
    """Causal attention with one linear layer for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Batch x tokens x width."""
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.c_attn(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        hidden = torch.ones_like(scores[0, 0]).tril() == 0
        mixed = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
        return self.c_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward layer, normalised before."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        """Batch x tokens x width."""
        x = x + self.attn(self.ln_1(x))
        wide = nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.mlp["c_proj"](wide)


class SortGPT(nn.Module):
    """Reads digits and then writes them in order."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, WIDTH),
                "wpe": nn.Embedding(CONTEXT, WIDTH),
                "h": nn.ModuleList(Block() for _ in range(LAYERS)),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        """Logits for batch x tokens."""
        positions = torch.arange(idx.shape[1], device=idx.device)
        x = self.transformer["wte"](idx) + self.transformer["wpe"](positions)
        for block in self.transformer["h"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def build() -> nn.Module:
    """What `--arch sort_gpt:build` names."""
    return SortGPT()


def inputs() -> np.ndarray[Any, Any]:
    """All 729 inputs: six digits of 0, 1 and 2."""
    return np.array(list(itertools.product(range(VOCABULARY), repeat=DIGITS)))


def sorted_right(logits: Callable[[Tensor], Tensor]) -> int:
    """How many of all inputs are continued by their digits in order."""
    ids = torch.from_numpy(inputs())
    wanted = ids.sort(1).values
    with torch.no_grad():
        for _ in range(DIGITS):
            ids = torch.cat([ids, logits(ids)[:, -1:].argmax(-1)], 1)
    return int((ids[:, DIGITS:] == wanted).all(1).sum())


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in the JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    state: dict[str, Tensor] = {}
    for name, entry in content.items():
        if isinstance(entry, dict) and "data" in entry and "shape" in entry:
            numbers = np.frombuffer(base64.b64decode(entry["data"]), "<f4").reshape(entry["shape"])
            state[name] = torch.from_numpy(numbers.copy())
    wanted = build().state_dict()
    return {name: tensor for name, tensor in state.items() if name in wanted}


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    model = build()
    model.load_state_dict(read_state(source))
    torch.save(model.state_dict(), target)
    print(f"{target}: sorts {sorted_right(model.eval())} of {len(inputs())}")
