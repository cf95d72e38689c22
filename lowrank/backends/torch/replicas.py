"""Copies of a module that share its numbers, so that several threads can run it at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, LifoQueue
from typing import Generic, TypeVar

from torch import nn

from lowrank.backends.memory import batches_at_once

T = TypeVar("T")


def replica(module: nn.Module) -> nn.Module:
    """A copy of a module that has its own hooks and whatever else it remembers while it runs, but the very same
    parameters and buffers: other numbers in those are other numbers in both."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def can_be_copied(module: nn.Module) -> bool:
    """Whether a module has replicas: what it holds beside modules and tensors may have no copies."""
    try:
        replica(module)
    except Exception:
        return False
    return True


def jobs_for(module: nn.Module) -> int:
    """How many threads may run a module at once, each with a replica: one for each core, as far as there is memory for
    a batch in each; one where it cannot be copied."""
    layers = (layer for layer in module.modules() if not isinstance(layer, nn.Embedding))
    matrices = (p for layer in layers for p in layer.parameters(recurse=False) if p.dim() > 1)
    jobs = batches_at_once(max((max(matrix.shape) for matrix in matrices), default=1))
    return jobs if jobs > 1 and can_be_copied(module) else 1


class Spares(Generic[T]):
    """Things of which each thread needs one while it works; no more are made than are in use at once.

    Args:
        make: one more of them; in the calling thread.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._free: LifoQueue[T] = LifoQueue()

    @contextmanager
    def one(self) -> Iterator[T]:
        """One that no other thread has, inside the block."""
        try:
            spare = self._free.get_nowait()
        except Empty:
            spare = self._make()
        try:
            yield spare
        finally:
            self._free.put(spare)
