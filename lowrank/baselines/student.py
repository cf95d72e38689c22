"""A student with half of the layers: every second block of the dense model, trained to give what that gives."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Signature
from lowrank.backends.torch.huggingface import build_dense
from lowrank.backends.torch.inputs import in_float32
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.normalize import normalize_
from lowrank.backends.torch.tensors import module_in_float32
from lowrank.errors import UnsupportedModel, first_line
from lowrank.healing.checkpoint import Checkpoint
from lowrank.healing.clock import WorkLimit
from lowrank.healing.distill import Distillation, Samples
from lowrank.healing.module_runner import ModuleRunner, block_paths
from lowrank.healing.phases import Healing
from lowrank.healing.training import Training


def half_of(dense: Backend) -> ModuleBackend:
    """A model with the first, third, fifth ... block of the dense one, and everything else of it (as DistilBERT begins:
    Sanh et al., 2019, section 3).

    Raises:
        UnsupportedModel: with the reason why there is no such model.
    """
    if not isinstance(dense, ModuleBackend) or not isinstance(dense.signature, Signature):
        raise UnsupportedModel("no student: the model is no torch module that can be run, so it cannot be trained")
    if dense.rebuild["kind"] != "huggingface":
        raise UnsupportedModel("no student: only a Hugging Face config says how a model with fewer layers is built")
    paths = _blocks(dense)
    front = paths[0].rpartition(".")[0]
    stay = list(range(0, len(paths), 2))
    module: Any = dense.module
    config = _shorter(module.config, len(paths), stay)
    try:
        student = normalize_(build_dense(config, module.dtype))
        student.load_state_dict(_renamed(dense.module, front, stay))
    except Exception as error:
        raise UnsupportedModel(
            f"no student: {type(module).__name__} with {len(stay)} layers does not take the tensors of the one with "
            f"{len(paths)} ({first_line(error)})"
        ) from None
    return replace(dense, module=student.eval(), fresh=None)


def distillation(
    dense: Backend,
    student: ModuleBackend,
    samples: Samples,
    training: Training,
    checkpoint: Checkpoint,
) -> Healing:
    """A training of the student by the same means, losses and search for a rate that heal a compressed model.

    Each block is to give what the second of the two dense blocks gives that it stands for. Everything is trained but
    tables, which healing leaves alone, too.

    Args:
        dense: the teacher.
        student: of `half_of`; its module has the best numbers when the healing has run.
        samples: to learn from, and to be judged by.
        training: how long, and the seed.
        checkpoint: where an interrupted training is kept.
    """
    work = WorkLimit(60 * training.minutes, training.steps)
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    signature = in_float32(dense.signature)
    teacher, taught = (module_in_float32(each.module).eval() for each in (dense, student))
    paths, own = (block_paths(module, signature, samples.fit[0]) for module in (teacher, taught))
    imitated = [paths[min(2 * i + 1, len(paths) - 1)] for i in range(len(own))]
    runners = ModuleRunner(teacher, signature, imitated), ModuleRunner(taught, signature, own)
    task = Distillation(*runners, samples, _trained(taught))
    return Healing(task, student.module, work, loss=task.before, seed=training.seed, checkpoint=checkpoint)


def save_student(student: ModuleBackend, folder: Path) -> None:
    """Save it, with its own config in the place of the dense model's."""
    module: Any = student.module
    student.save(folder)
    module.config.save_pretrained(folder)


def _blocks(dense: ModuleBackend) -> list[str]:
    """The paths of its blocks, which are one list."""
    assert isinstance(dense.signature, Signature)
    paths = block_paths(dense.module, dense.signature, dense.signature.example(1, 4))
    fronts = {path.rpartition(".")[0] for path in paths}
    if len(paths) < 2 or len(fronts) > 1:
        blocks = f"{len(paths)} blocks" if len(fronts) < 2 else f"blocks in {len(fronts)} lists"
        raise UnsupportedModel(f"no student: the model has {blocks}, and every second one of a single list is left out")
    return paths


def _shorter(config: Any, count: int, stay: Sequence[int]) -> Any:
    """The config of a model with some of the layers; what it says of each layer is cut alike."""
    if getattr(config, "num_hidden_layers", None) != count:
        raise UnsupportedModel(f"no student: config.json does not say in num_hidden_layers that there are {count}")
    shorter = copy.deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(shorter, name, [value[i] for i in stay])
    shorter.num_hidden_layers = len(stay)
    return shorter


def _renamed(module: nn.Module, front: str, stay: Sequence[int]) -> dict[str, torch.Tensor]:
    """The state of the dense model without the blocks that are left out, those that stay counted anew."""
    places = {str(old): str(new) for new, old in enumerate(stay)}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in module.state_dict().items():
        if not name.startswith(f"{front}."):
            state[name] = tensor
            continue
        number, _, rest = name.removeprefix(f"{front}.").partition(".")
        if number in places:
            state[f"{front}.{places[number]}.{rest}"] = tensor
    return state


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    tables = {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
    return {name: p for name, p in module.named_parameters() if p.is_floating_point() and id(p) not in tables}
