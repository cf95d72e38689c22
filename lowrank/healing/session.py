"""From two backends and data to a healing that can run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.inputs import in_float32
from lowrank.backends.torch.lora import residuals
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.tensors import module_in_float32
from lowrank.backends.torch.workers import Workers
from lowrank.core.structures import structure_named
from lowrank.core.truncation.pivoted import Pivoted
from lowrank.errors import HealingError
from lowrank.healing.adapter import adaptable, attach, parameters_of, smallest_sizes
from lowrank.healing.clock import Work
from lowrank.healing.discarded import begin_with_the_discarded
from lowrank.healing.distill import Distillation
from lowrank.healing.heal import Healing
from lowrank.healing.options import AdapterOptions
from lowrank.healing.parameters import restore_, snapshot, trainable
from lowrank.healing.watched import Watched, block_paths, on_device


@dataclass(frozen=True, eq=False)
class Session:
    """A healing that can run, and the adapter that it trains, if it does."""

    healing: Healing
    shapes: dict[str, tuple[int, int]]
    """(inputs, outputs) of each layer with an adapter."""
    peft: Any = None
    """The `peft.PeftModel`."""

    def residuals(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each adapted layer `A` (inputs x rank) and `B` (rank x outputs), the scale included."""
        return residuals(self.healing.target)


def start(
    dense: Backend,
    small: Backend,
    fit: Sequence[Feed],
    heldout: Sequence[Feed],
    work: Work,
    *,
    seed: int = 0,
    device: str = "cpu",
    adapter: AdapterOptions | None = None,
    path: Path | None = None,
    key: str = "",
    resume: bool = False,
) -> Session:
    """Get a healing of `small` ready, whose module has the best numbers when it has run.

    Args:
        dense: the model to imitate.
        small: the compressed one.
        fit: batches to learn from.
        heldout: batches to be judged by.
        work: how much is allowed.
        seed: of the order of the batches.
        device: where to train.
        adapter: train this, and leave the module as it is.
        path: of the checkpoint; None keeps none.
        key: hash of everything that was asked for.
        resume: go on from the checkpoint.

    Raises:
        HealingError: if there is nothing to train, no such device, or no such checkpoint.
    """
    if not isinstance(dense, ModuleBackend) or not isinstance(small, ModuleBackend):
        raise HealingError("only a torch module can be trained; give the model that the file was made from")
    signature = dense.signature
    if not isinstance(signature, Signature):
        raise HealingError(f"the model cannot be run, so it cannot be trained: {signature}")
    if small.rebuild["kind"] == "program" and (adapter is not None or device != "cpu"):
        raise HealingError(
            "an exported program cannot be copied, so it takes no adapter and is trained on the CPU; heal it without "
            "--adapter and --device, or give the model as code"
        )
    _check_device(device)
    workers = Workers(device)
    device = workers.device
    signature = in_float32(signature)
    teacher, student = (module_in_float32(backend.module).eval() for backend in (dense, small))
    layers = [layer for record in small.replaced.values() for layer in record["layers"]]
    if not layers:
        raise HealingError("nothing in the compressed model was replaced, so there is nothing to heal")
    paths = block_paths(teacher, signature, fit[0])
    shapes: dict[str, tuple[int, int]] = {}
    model: Any = None
    if adapter is not None:
        if student is small.module:
            # The adapters are put on a copy: what they are beside stays as it is.
            student = copy.deepcopy(student)
        if adapter.fold != "no":
            alone = (r["layers"] for r in small.replaced.values() if not structure_named(r["structure"]).shares_basis)
            layers = [each[0] for each in alone if len(each) == 1]
        shapes = adaptable(student, layers)
        if adapter.fold == "exact":
            _check_room(small, shapes, adapter.rank)
        model = attach(student, shapes, adapter.rank, seed)
    begun: dict[str, Tensor] | None = None
    if adapter is not None and adapter.initial == "discarded" and not resume:
        nothing = snapshot(parameters_of(student))
        begin_with_the_discarded(student, dense, small, fit)
        begun = snapshot(parameters_of(student))
        restore_(parameters_of(student), nothing)
    trained = on_device(student, device)
    task = Distillation(
        Watched(on_device(teacher, device), signature, paths, device),
        Watched(trained, signature, paths, device),
        dense.output_kind,
        fit,
        heldout,
        trainable(trained, layers) if adapter is None else parameters_of(trained),
        smallest_sizes(trained, shapes),
        workers,
    )
    now = task.before
    if begun is not None:
        nothing = snapshot(task.parameters)
        restore_(task.parameters, begun)
        now = task.judge()
        if now >= task.before:
            restore_(task.parameters, nothing)
            now = task.before
    target = small.module if adapter is None else student
    healing = Healing(task, target, work, now=now, seed=seed, path=path, key=key, resume=resume)
    return Session(healing, shapes, model)


def _check_room(small: ModuleBackend, shapes: Mapping[str, tuple[int, int]], rank: int) -> None:
    for name, record in small.replaced.items():
        full = min(shapes.get(record["layers"][0], (0, 0)))
        if structure_named(record["structure"]).factors is Pivoted and 0 < full <= record["rank"] + rank:
            raise HealingError(
                f"{name} of rank {record['rank']} is pivoted, which is for ranks below its full {full}: an adapter of "
                f"rank {rank} does not fit into it; give a smaller --adapter, or --fold rank"
            )


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise HealingError(f"there is no device {device!r} here ({type(error).__name__}); use --device cpu") from None
