"""Generation: whether a graph with a key-value cache chooses the tokens that the torch module chooses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.errors import ExportError, first_line
from lowrank.evaluate.graph import open_graph

if TYPE_CHECKING:
    from lowrank.backends import Backend

PROMPTS, LENGTH, NEW = 2, 4, 12


def check_generation(backend: Backend, path: Path, exact: bool = True) -> dict[str, Any]:
    """Generate greedily both ways, from random prompts, the graph token by token with its cache.

    Args:
        backend: the torch model.
        path: the graph.
        exact: whether the tokens must be the same; those of a rounded graph need not.

    Returns:
        `prompts` and `tokens`, how many of each were compared.

    Raises:
        ExportError: if the graph does not run, or chooses another token.
    """
    import torch

    from lowrank.backends.torch import ModuleBackend
    from lowrank.backends.torch.tensors import module_in_float32

    assert isinstance(backend, ModuleBackend)
    module: Any = module_in_float32(backend.module)
    vocabulary = module.config.get_text_config().vocab_size
    prompts = np.random.default_rng(0).integers(0, vocabulary, (PROMPTS, LENGTH))
    ids = torch.from_numpy(prompts)
    with torch.no_grad():
        for _ in range(NEW):
            logits = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    ours = ids.numpy()[:, LENGTH:]
    try:
        theirs = generate(path, prompts, NEW)
    except Exception as error:
        raise ExportError(f"{path.name} does not generate: {first_line(error)}") from None
    if exact and not np.array_equal(ours, theirs):
        wrong = int((ours != theirs).any(0).argmax())
        raise ExportError(f"{path.name} chooses other tokens than torch from the {wrong + 1}. new one on")
    return {"prompts": PROMPTS, "tokens": NEW}


def generate(path: Path, prompts: np.ndarray[Any, Any], new: int) -> np.ndarray[Any, Any]:
    """Greedy tokens (prompts x new) of a graph with a cache, in ONNX Runtime."""
    session = open_graph(path)
    batch, length = prompts.shape
    spec = {i.name: i for i in session.get_inputs()}
    past = {
        name: np.zeros([batch, i.shape[1], 0, i.shape[3]], np.float32)
        for name, i in spec.items()
        if name.startswith("past_key_values")
    }
    outputs = [o.name for o in session.get_outputs()]
    step, chosen = prompts, []
    for number in range(new):
        mask = np.ones((batch, length + number), np.int64)
        values = dict(zip(outputs, session.run(None, {"input_ids": step, "attention_mask": mask, **past}), strict=True))
        step = values["logits"][:, -1:].argmax(-1)
        past = {name: values[name.replace("past_key_values", "present")] for name in past}
        chosen.append(step)
    return np.concatenate(chosen, 1)
