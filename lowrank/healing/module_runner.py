"""A module run batch by batch, with the outputs of its blocks beside its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.hooks import removed_after
from lowrank.backends.torch.inputs import as_tensors, call, mask_of
from lowrank.backends.torch.partial_forward import blocks_of, main_tensor
from lowrank.backends.torch.replicas import Spares, jobs_for, replica
from lowrank.backends.torch.tensors import module_in_float32


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of a module for one batch."""

    hidden: list[Tensor]
    """The output of every block."""
    named: dict[str, Tensor]
    """Its own outputs that are compared, by name."""


class ModuleRunner:
    """Runs a module on a device, on the CPU in several threads at once.

    Args:
        module: on the device.
        signature: how it is fed.
        paths: the blocks whose outputs are wanted; see `block_paths`.
        device: where it runs.
    """

    def __init__(self, module: nn.Module, signature: Signature, paths: Sequence[str], device: str = "cpu") -> None:
        self.module, self.signature, self.paths, self.device = module, signature, list(paths), device

    def __call__(self, feed: Feed) -> Outputs:
        """Run one batch."""
        with self.spares.one() as own:
            return own._outputs(feed)

    def _outputs(self, feed: Feed) -> Outputs:
        hidden: list[Tensor] = []

        def listen(block: nn.Module, args: Any, output: Any) -> None:
            hidden.append(main_tensor(output))

        handles = [self.module.get_submodule(path).register_forward_hook(listen) for path in self.paths]
        with removed_after(handles), self.precision():
            outputs = call(self.signature, self.module, self.placed(feed))
        return Outputs(hidden, {output.name: outputs[output.name] for output in self.signature.compared})

    def precision(self) -> torch.autocast:
        """The precision of a run: on a GPU matrices are multiplied in bfloat16."""
        return torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.device != "cpu")

    @property
    def copied(self) -> ModuleRunner:
        """The same with a replica of the module, for another thread."""
        return ModuleRunner(replica(self.module), self.signature, self.paths, self.device)

    @cached_property
    def jobs(self) -> int:
        """How many threads may run a replica each."""
        return jobs_for(self.module) if self.device == "cpu" else 1

    @cached_property
    def spares(self) -> Spares[ModuleRunner]:
        """One for each thread that asks."""
        return Spares(lambda: self.copied if self.jobs > 1 else self)

    def with_module(self, module: nn.Module) -> ModuleRunner:
        """Another module in the same way."""
        module = on_device(module_in_float32(module).eval(), self.device)
        return ModuleRunner(module, self.signature, self.paths, self.device)

    def placed(self, feed: Feed) -> dict[str, Tensor]:
        """A batch on the device."""
        return {name: tensor.to(self.device) for name, tensor in as_tensors(self.signature, feed).items()}

    def mask(self, feed: Feed) -> Tensor | None:
        """Which tokens of a batch are no padding; None if none is."""
        mask = mask_of(feed)
        return None if mask is None else mask.to(self.device)


def on_device(module: nn.Module, device: str) -> nn.Module:
    """The module itself on the CPU; for another device a copy, so that the module given stays where it is."""
    return module if device == "cpu" else copy.deepcopy(module).to(device)


def block_paths(module: nn.Module, signature: Signature, feed: Feed) -> list[str]:
    """The repeated blocks of a module in the order in which they run; none if it has none, or runs one twice."""
    with torch.no_grad():
        return [path for path, _ in blocks_of(module, lambda: call(signature, module, feed))]
