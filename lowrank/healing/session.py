"""From two backends and data to a healing that can run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.inputs import in_float32
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.tensors import module_in_float32
from lowrank.errors import HealingError
from lowrank.healing.distill import Distillation
from lowrank.healing.heal import Healing
from lowrank.healing.parameters import trainable
from lowrank.healing.watched import Watched, block_paths
from lowrank.healing.work import Work


def start(
    dense: Backend,
    small: Backend,
    fit: Sequence[Feed],
    heldout: Sequence[Feed],
    work: Work,
    *,
    seed: int = 0,
    device: str = "cpu",
    path: Path | None = None,
    key: str = "",
    resume: bool = False,
) -> Healing:
    """A healing of `small`, whose module has the best numbers when it has run.

    Args:
        dense: the model to imitate.
        small: the compressed one.
        fit: batches to learn from.
        heldout: batches to be judged by.
        work: how much is allowed.
        seed: of the order of the batches.
        device: where to train.
        path: of the checkpoint; None keeps none.
        key: hash of everything that was asked for.
        resume: go on from the checkpoint.

    Raises:
        HealingError: if there is nothing to train, no such device, or no such checkpoint.
    """
    if not isinstance(dense, ModuleBackend) or not isinstance(small, ModuleBackend):
        raise HealingError(
            "an ONNX file or a bare state dict holds no module that could be trained; the closed-form refit of "
            "`lowrank compress` is what can be done for it: give the model that the file was made from, or --arch"
        )
    signature = dense.signature
    if not isinstance(signature, Signature):
        raise HealingError(f"the model cannot be run, so it cannot be trained: {signature}")
    _check_device(device)
    signature = in_float32(signature)
    modules = [module_in_float32(backend.module).eval() for backend in (dense, small)]
    layers = [layer for record in small.replaced.values() for layer in record["layers"]]
    parameters = trainable(modules[1], layers)
    if not layers or not parameters:
        raise HealingError("nothing in the compressed model was replaced, so there is nothing to heal")
    paths = block_paths(modules[0], signature, fit[0])
    teacher, student = (Watched(module, signature, paths, device) for module in modules)
    task = Distillation(teacher, student, dense.output_kind, fit, heldout, parameters)
    return Healing(task, small.module, work, seed=seed, path=path, key=key, resume=resume)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise HealingError(f"there is no device {device!r} here ({type(error).__name__}); use --device cpu") from None
