"""Generation: whether a graph with a key-value cache chooses the tokens that the torch module chooses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lowrank.errors import ExportError, first_line
from lowrank.evaluate.graph import open_graph

if TYPE_CHECKING:
    from lowrank.backends import Backend

LENGTHS, NEW = (4, 2), 12
"""Tokens of the prompts, the shorter of which is padded on the left, and tokens that follow."""


def check_generation(backend: Backend, path: Path, exact: bool = True) -> list[str]:
    """Generate greedily both ways, from random prompts: torch from each alone, the graph from a batch that is padded on
    the left, token by token with its cache.

    Args:
        backend: the torch model.
        path: the graph.
        exact: whether the tokens must be the same; those of a rounded graph need not.

    Returns:
        A note, if the model itself goes on in another way when it is padded on the left.

    Raises:
        ExportError: if the graph does not run, or chooses another token.
    """
    from lowrank.backends.torch import ModuleBackend
    from lowrank.backends.torch.tensors import module_in_float32

    assert isinstance(backend, ModuleBackend)
    module: Any = module_in_float32(backend.module)
    draw, vocabulary = np.random.default_rng(0), module.config.get_text_config().vocab_size
    prompts = [draw.integers(0, vocabulary, length) for length in LENGTHS]
    ids, mask = padded_left(prompts)
    try:
        found = generate(path, ids, NEW, mask)
    except Exception as error:
        raise ExportError(f"{path.name} does not generate: {first_line(error)}") from None
    alone = np.concatenate([_greedy(module, prompt[None], np.ones((1, len(prompt)), np.int64)) for prompt in prompts])
    if not exact or np.array_equal(alone, found):
        return []
    if np.array_equal(alone[0], found[0]) and np.array_equal(_greedy(module, ids, mask), found):
        return [
            f"{path.name}: the model itself goes on in another way where a batch is padded on the left; run texts of "
            "one length together"
        ]
    wrong = int((alone != found).any(0).argmax())
    raise ExportError(f"{path.name} chooses other tokens than torch from the {wrong + 1}. new one on")


def padded_left(prompts: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Prompts as one batch whose rows end together, and its mask."""
    longest = max(map(len, prompts))
    ids, mask = (np.zeros((len(prompts), longest), np.int64) for _ in range(2))
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    return ids, mask


def places_of(mask: NDArray[Any]) -> NDArray[Any]:
    """The position of each token in its text; 0 in front of it.

    Example:
        >>> places_of(np.array([[0, 0, 1, 1]])).tolist()
        [[0, 0, 0, 1]]
    """
    return np.maximum(mask.cumsum(1) - 1, 0)


def _greedy(module: Any, prompts: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
    """Greedy tokens (prompts x `NEW`) of a torch module, without a cache."""
    import torch

    from lowrank.backends.torch.export_cache import reads_positions

    ids, placed = torch.from_numpy(prompts), reads_positions(module)
    with torch.no_grad():
        for number in range(NEW):
            shown = _longer(mask, number)
            values = {"attention_mask": shown, **({"position_ids": places_of(shown)} if placed else {})}
            feed = {name: torch.from_numpy(value) for name, value in values.items()}
            logits = module(input_ids=ids, use_cache=False, **feed).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids.numpy()[:, prompts.shape[1] :]


def _longer(mask: NDArray[Any], more: int) -> NDArray[Any]:
    """The mask of a batch that goes on for so many tokens."""
    return np.concatenate([mask, np.ones((len(mask), more), mask.dtype)], 1)


def generate(path: Path, prompts: NDArray[Any], new: int, mask: NDArray[Any] | None = None) -> NDArray[Any]:
    """Greedy tokens (prompts x new) of a graph with a cache, in ONNX Runtime.

    Args:
        path: the graph.
        prompts: token ids, prompts x tokens.
        new: how many tokens.
        mask: 0 where a prompt is padded, in front of it; all tokens count if not given.
    """
    session = open_graph(path)
    mask = np.ones_like(prompts) if mask is None else mask
    spec = {i.name: i for i in session.get_inputs()}
    past = {
        name: np.zeros([len(prompts), i.shape[1], 0, i.shape[3]], np.float32)
        for name, i in spec.items()
        if name.startswith("past_key_values")
    }
    outputs = [o.name for o in session.get_outputs()]
    step, chosen = prompts, []
    for number in range(new):
        shown = _longer(mask, number)
        feed = {"input_ids": step, "attention_mask": shown, **past}
        if "position_ids" in spec:
            feed["position_ids"] = places_of(shown)[:, -step.shape[1] :]
        values = dict(zip(outputs, session.run(None, feed), strict=True))
        step = values["logits"][:, -1:].argmax(-1)
        past = {name: values[name.replace("past_key_values", "present")] for name in past}
        chosen.append(step)
    return np.concatenate(chosen, 1)
