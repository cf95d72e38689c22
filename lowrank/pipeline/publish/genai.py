"""`genai_config.json`: what onnxruntime-genai must know of a causal graph with a cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.artifacts.files import atomic
from lowrank.backends.inputs import MASK, Signature
from lowrank.pipeline.publish.graph_names import GRAPHS, STEM

if TYPE_CHECKING:
    from lowrank.backends.torch import ModuleBackend

GENAI_CONFIG = "genai_config.json"
GRAPH = f"{GRAPHS}/{STEM}.onnx"
KIND = "decoder"
"""What it calls any causal model that has no ways of its own; under the name `gpt2` it would look for another cache."""
SEARCH = ("do_sample", "num_beams", "repetition_penalty", "temperature", "top_k", "top_p")


def write_genai_config(backend: ModuleBackend, folder: Path, remark: Callable[[str], object]) -> None:
    """Write `genai_config.json`, which names `onnx/model.onnx`, into a folder in the layout of the Hub.

    Args:
        backend: the causal language model.
        folder: has the graph with the cache already.
        remark: is told if it cannot be had.
    """
    import onnx_ir as ir

    from lowrank.backends.torch.export_cache import cache_shapes

    module: Any = backend.module
    shapes = cache_shapes(module)
    if len(set(shapes)) > 1:
        sizes = ", ".join(f"{heads} x {width}" for heads, width in dict.fromkeys(shapes))
        remark(
            f"no {GENAI_CONFIG}: onnxruntime-genai takes one size of cache for all layers, and those of this model "
            f"have {sizes} (heads x width); run {GRAPH} with onnxruntime"
        )
        return
    ((heads, width), *_) = shapes
    taken = [str(value.name) for value in ir.load(folder / GRAPH).graph.inputs]
    text, generation = module.config.get_text_config(), module.generation_config
    assert isinstance(backend.signature, Signature)
    decoder = _decoder(text, taken, len(shapes), heads, width)
    length = backend.signature.max_sequence
    content = {
        "model": {
            "type": KIND,
            "context_length": length,
            "vocab_size": text.vocab_size,
            **_tokens(generation, text),
            "decoder": decoder,
        },
        "search": {
            "max_length": length,
            "past_present_share_buffer": False,
            **{name: value for name in SEARCH if (value := getattr(generation, name, None)) is not None},
        },
    }
    with atomic(folder / GENAI_CONFIG) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _decoder(config: Any, taken: Sequence[str], layers: int, heads: int, width: int) -> dict[str, Any]:
    """What is said of the graph: its file, its sizes, and what its inputs and outputs are called."""
    from lowrank.backends.torch.export_cache import POSITIONS

    return {
        "session_options": {"provider_options": []},
        "filename": GRAPH,
        "head_size": width,
        "hidden_size": getattr(config, "hidden_size", heads * width),
        "inputs": {
            **{name: name for name in ("input_ids", MASK, POSITIONS) if name in taken},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": getattr(config, "num_attention_heads", heads),
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
    }


def _tokens(generation: Any, config: Any) -> dict[str, Any]:
    """The tokens that begin and end a text, and that fill it up; one that ends it if none is for that."""

    def token(name: str) -> Any:
        return next((v for each in (generation, config) if (v := getattr(each, name, None)) is not None), None)

    ends = token("eos_token_id")
    first = ends[0] if isinstance(ends, list) else ends
    filling = token("pad_token_id")
    found = {
        "bos_token_id": token("bos_token_id"),
        "eos_token_id": ends,
        "pad_token_id": first if filling is None else filling,
    }
    return {name: value for name, value in found.items() if value is not None}
