"""A llama2.c checkpoint (legacy float32 format) as a Hugging Face Llama folder with its tokenizer.

    python tools/convert_stories.py models/stories260K stories

The folder needs `<name>.bin` and its tokenizer (`tok*.bin`). If `greedy_output.txt` lies beside them, the converted
model must tell that story.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

START = 1
"""The token that begins every text."""


def read_checkpoint(path: Path) -> Any:
    """The model, with rotary positions in halves, as transformers has them, instead of adjacent pairs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    data = path.read_bytes()
    width, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack("<7i", data[:28])
    numbers, at = np.frombuffer(data, "<f4", offset=28), 0
    size, kv = width // heads, width // heads * kv_heads
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=abs(vocabulary),
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=START,
        eos_token_id=START,
    )
    model = LlamaForCausalLM(config).eval()
    shapes = {
        "model.embed_tokens.weight": (abs(vocabulary), width),
        "input_layernorm": (layers, width),
        "self_attn.q_proj": (layers, width, width),
        "self_attn.k_proj": (layers, kv, width),
        "self_attn.v_proj": (layers, kv, width),
        "self_attn.o_proj": (layers, width, width),
        "post_attention_layernorm": (layers, width),
        "mlp.gate_proj": (layers, hidden, width),
        "mlp.down_proj": (layers, width, hidden),
        "mlp.up_proj": (layers, hidden, width),
        "model.norm.weight": (width,),
    }
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        tensor, at = torch.from_numpy(numbers[at : at + count].reshape(shape).copy()), at + count
        if name.endswith(("q_proj", "k_proj")):
            tensor = halves(tensor, size)
        if name.startswith("model."):
            state[name] = tensor
        else:
            state |= {f"model.layers.{i}.{name}.weight": tensor[i].clone() for i in range(layers)}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


def halves(weight: Tensor, size: int) -> Tensor:
    """Rows of each head from (pair, part of the pair) to (part of the pair, pair)."""
    heads = weight.shape[1] // size
    return weight.unflatten(1, (heads, size // 2, 2)).transpose(2, 3).flatten(1, 3).contiguous()


def read_tokenizer(path: Path, count: int) -> Any:
    """The tokenizer, which merges the adjacent pair with the best score, as byte-fallback BPE."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    data, at = path.read_bytes(), 4
    pieces: list[tuple[str, float]] = []
    for _ in range(count):
        score, length = struct.unpack("<fi", data[at : at + 8])
        pieces.append((data[at + 8 : at + 8 + length].decode("utf-8"), score))
        at += 8 + length
    # The first three are specials, then come 256 bytes.
    vocabulary = {("<unk>", "<s>", "</s>")[i] if i < 3 else text: i for i, (text, _) in enumerate(pieces)}
    known = {text for text, _ in pieces[259:]}
    merges: list[tuple[str, str]] = []
    for text, _ in sorted(pieces[259:], key=lambda piece: -piece[1]):
        merges += [(text[:i], text[i:]) for i in range(1, len(text)) if {text[:i], text[i:]} <= known]
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Prepend(" ")  # pyright: ignore[reportAttributeAccessIssue]
    inner.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def tell(model: Any, tokens: int) -> list[int]:
    """The tokens of the most likely story."""
    with torch.no_grad():
        ids = model.generate(torch.tensor([[START]]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return ids[0, 1:].tolist()


def convert(source: Path, target: Path) -> tuple[Any, Any]:
    """Write the folder.

    Returns:
        Model and tokenizer.
    """
    (checkpoint,) = (p for p in source.glob("*.bin") if not p.name.startswith("tok"))
    (words,) = source.glob("tok*.bin")
    model = read_checkpoint(checkpoint)
    tokenizer = read_tokenizer(words, model.config.vocab_size)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return model, tokenizer


if __name__ == "__main__":
    folder, output = map(Path, sys.argv[1:3])
    made, reader = convert(folder, output)
    story = reader.decode(tell(made, 200))
    known_story = folder / "greedy_output.txt"
    if known_story.is_file():
        text = known_story.read_text(encoding="utf-8").strip()
        assert story[: len(text)] == text[: len(story)], f"another story: {story}"
        print(f"{output} tells the story in {known_story.name}")
    else:
        print(story)
