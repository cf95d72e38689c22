"""From two backends and data to a healing that can run."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import blake2b

from torch import nn

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.inputs import in_float32
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.tensors import module_in_float32
from lowrank.backends.torch.workers import Workers
from lowrank.core.structures import structure_named
from lowrank.core.truncation.pivoted import Pivoted
from lowrank.errors import HealingError
from lowrank.healing.adapter import Adapter, adaptable, attach, parameters_of, smallest_sizes
from lowrank.healing.checkpoint import Checkpoint
from lowrank.healing.clock import WorkLimit
from lowrank.healing.discarded import begin_with_the_discarded
from lowrank.healing.distill import Distillation, Samples
from lowrank.healing.grids import Grids
from lowrank.healing.module_runner import ModuleRunner, block_paths, on_device
from lowrank.healing.optimizer import restore_, snapshot
from lowrank.healing.phases import Healing
from lowrank.healing.training import Training, check_device


def prepare(
    dense: Backend,
    small: Backend,
    samples: Samples,
    training: Training,
    checkpoint: Checkpoint | None = None,
    *,
    same_size: bool = False,
    grids: Grids | None = None,
) -> Healing:
    """Get a healing of `small` ready, whose module has the best numbers when it has run.

    Args:
        dense: the model to imitate.
        small: the compressed one; with an adapter its module stays as it is.
        samples: to learn from, and to be judged by.
        training: how.
        checkpoint: where an interrupted healing is kept; nowhere, if not given.
        same_size: the model's file may not grow: vectors that are alike, which a graph has once, stay as they are.
        grids: of the matrices that are trained in few bits, in which they are already.

    Raises:
        HealingError: if there is nothing to train, no such device, or no such checkpoint.
    """
    work, checkpoint = WorkLimit(60 * training.minutes, training.steps), checkpoint or Checkpoint()
    if not isinstance(dense, ModuleBackend) or not isinstance(small, ModuleBackend):
        raise HealingError("only a torch module can be trained; give the model that the file was made from")
    if not isinstance(dense.signature, Signature):
        raise HealingError(f"the model cannot be run, so it cannot be trained: {dense.signature}")
    if small.rebuild["kind"] == "program" and (training.adapter is not None or training.device != "cpu"):
        raise HealingError(
            "an exported program cannot be copied, so it takes no adapter and is trained on the CPU; heal it without "
            "--adapter and --device, or give the model as code"
        )
    check_device(training.device)
    if all(output.kind == "choices" for output in dense.signature.compared):
        raise HealingError("the model gives whole numbers alone, which have no gradient; heal one that gives scores")
    if not small.replaced and not grids:
        raise HealingError("nothing in the compressed model was replaced, so there is nothing to heal")
    workers, signature = Workers(training.device), in_float32(dense.signature)
    teacher, student = (module_in_float32(backend.module).eval() for backend in (dense, small))
    adapter = None if training.adapter is None else _adapter(small, student, training, training.adapter)
    target = small.module if adapter is None else adapter.module
    student = on_device(student if adapter is None else adapter.module, workers.device)
    paths = block_paths(teacher, signature, samples.fit[0])
    task = Distillation(
        ModuleRunner(on_device(teacher, workers.device), signature, paths, workers.device),
        ModuleRunner(student, signature, paths, workers.device),
        samples,
        trainable(student, _layers(small), same_size, _rounded(grids or {}))
        if adapter is None
        else parameters_of(student),
        None if adapter is None else smallest_sizes(student, adapter.shapes),
        workers,
    )
    loss = task.before
    if adapter is not None and training.initial == "discarded" and training.fold != "rank" and not checkpoint.resume:
        loss = _begin(task, adapter.module, dense, small, samples.fit)
    return Healing(
        task, target, work, loss=loss, seed=training.seed, checkpoint=checkpoint, adapter=adapter, grids=grids
    )


def trainable(
    module: nn.Module, layers: Iterable[str], same_size: bool = False, rounded: Collection[str] = ()
) -> dict[str, nn.Parameter]:
    """The factors, and every bias and norm of the model; ties once.

    Other dense matrices stay, so that what an optimiser holds is bounded by the size of the factors.

    Args:
        module: the compressed model.
        layers: the names of the replaced layers, or of factors themselves.
        same_size: without vectors, and rounded matrices, that are equal to another one.
        rounded: names of dense matrices that are trained as well.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> sorted(trainable(model, ["1"]))
        ['0.bias', '1.bias', '1.weight']
    """
    layers = list(layers)
    chosen, fronts = {*layers, *rounded}, tuple(f"{layer}." for layer in layers)
    found = {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point() and (parameter.dim() <= 1 or name.startswith(fronts) or name in chosen)
    }
    if not same_size:
        return found
    alike = {name: _digest(p) for name, p in found.items() if p.dim() <= 1 or name in rounded}
    times = Counter(alike.values())
    return {name: parameter for name, parameter in found.items() if times[alike.get(name, b"")] <= 1}


def _rounded(grids: Grids) -> list[str]:
    """The matrices that are trained with rounding; dense tables are large, and most of their rows are never read in
    some minutes."""
    return [name for name, grid in grids.items() if not grid.table]


def _digest(parameter: nn.Parameter) -> bytes:
    """The same for the same numbers."""
    return blake2b(parameter.detach().float().cpu().numpy().tobytes()).digest()


def _layers(small: ModuleBackend) -> list[str]:
    """The names of all replaced layers."""
    return [layer for record in small.replaced.values() for layer in record["layers"]]


def _adapter(small: ModuleBackend, student: nn.Module, training: Training, rank: int) -> Adapter:
    """An adapter on a copy of the compressed module, so that the model beside it stays as it is."""
    module, layers = copy.deepcopy(student) if student is small.module else student, _layers(small)
    if training.fold != "no":
        alone = (r["layers"] for r in small.replaced.values() if not structure_named(r["structure"]).shares_basis)
        layers = [each[0] for each in alone if len(each) == 1]
    shapes = adaptable(module, layers)
    if training.fold == "exact":
        _check_room(small, shapes, rank)
    return Adapter(module, shapes, attach(module, shapes, rank, training.seed))


def _begin(
    task: Distillation, module: nn.Module, dense: ModuleBackend, small: ModuleBackend, feeds: Sequence[Feed]
) -> float:
    """Let adapters begin as what was discarded, if that is better on the held-out samples; the loss on those."""
    zero = snapshot(task.parameters)
    begin_with_the_discarded(module, dense, small, feeds)
    # What is trained may be a copy on another device.
    restore_(task.parameters, snapshot(parameters_of(module)))
    loss = task.judge()
    if loss < task.before:
        return loss
    restore_(task.parameters, zero)
    return task.before


def _check_room(small: ModuleBackend, shapes: Mapping[str, tuple[int, int]], rank: int) -> None:
    for name, record in small.replaced.items():
        full = min(shapes.get(record["layers"][0], (0, 0)))
        if structure_named(record["structure"]).factors is Pivoted and 0 < full <= record["rank"] + rank:
            raise HealingError(
                f"{name} has pivoted factors of rank {record['rank']}, and an adapter of rank {rank} would take it "
                f"to its full rank {full}; give a smaller --adapter, or --fold rank"
            )
