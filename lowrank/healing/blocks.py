"""Block by block: parameters fitted to the dense block's outputs, on the inputs that the compressed model gives it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Feed, batch_size, elements
from lowrank.backends.torch.partial_forward import Prefix
from lowrank.healing.clock import Span, WorkLimit
from lowrank.healing.distill import Distillation, steps_in_turn
from lowrank.healing.grids import Grids
from lowrank.healing.loss import hidden_loss
from lowrank.healing.module_runner import ModuleRunner
from lowrank.healing.optimizer import Diverged, Optimizer, add_gradients_, descend, restore_, snapshot
from lowrank.healing.straight_through import RoundedOptimizer
from lowrank.parallel import threads

RATE = 0.02
"""The learning rate of a block, as a share of its relative error: steps of a given size would undo a small error, and
take long for a large one."""
ROUNDED_RATE = 0.05
"""The same for numbers that are rounded: they have to come as far as another code to change anything."""
REMEMBERED = 1 << 29
"""Bytes of the hidden states of one block, at most; they are in memory twice, and those of held-out batches besides."""


class BlockFit:
    """Fits one block after the other; one that gets no better on held-out batches stays as it was (AA-SVD, 2026).

    Args:
        task: the models and the data, of which as many batches are taken as `REMEMBERED` allows.
        work: the whole work, of which each block takes an equal part.
        length: of all parts together.
        seed: of the order of the batches.
        grids: of the parameters that are trained with rounding.
    """

    def __init__(
        self, task: Distillation, work: WorkLimit, length: float, seed: int, grids: Grids | None = None
    ) -> None:
        self.task, self.work, self.length, self.seed, self.grids = task, work, length, seed, grids
        student, dense = task.student, task.fit.dense
        aside = task.heldout.feeds[: max(1, len(task.heldout.feeds) // 2)]
        feeds = [*_some(task.fit.feeds, student), *aside]
        self.count, self.total = len(feeds) - len(aside), len(feeds)
        self._rows = [batch_size(feed) for feed in feeds]
        self._masks = [student.mask(feed) for feed in feeds]
        placed = [student.placed(feed) for feed in feeds]
        self._before = Prefix(dense.module, dense.signature, placed, task.jobs)
        self._after = Prefix(student.module, student.signature, placed, task.jobs)
        same = all(p.blocks == student.paths for p in (self._before, self._after))
        self.paths = student.paths if same and self.count else []
        """The blocks; none if the model cannot be run from the middle."""

    def fit(self, block: int) -> Iterator[float]:
        """Fit one block; after every step, how much of its part is over."""
        parameters = self.task.parameters
        own = {name: p for name, p in parameters.items() if name.startswith(f"{self.paths[block]}.")}
        if not own:
            return
        part, cost = Span(self.work, self.length / len(self.paths)), 1 / len(self.paths)
        steps, better, known = steps_in_turn(self.count, self.seed, together=self.task.together), False, snapshot(own)
        try:
            with self.task.student.precision():
                self._before.advance(block + 1)
                self._after.advance(block)
            if part.share < 1:
                start = self._judge()
                backward = partial(self._backward, list(own.values()))
                optimizer = self._optimizer(own, math.sqrt(start))
                yield from descend(backward, steps, optimizer, part, cost)
                better = self._judge() < start
        except Diverged:
            pass
        finally:
            if not better:
                restore_(own, known)

    def _optimizer(self, own: Mapping[str, nn.Parameter], error: float) -> Optimizer:
        if self.grids and own.keys() & self.grids.keys():
            return RoundedOptimizer(own, ROUNDED_RATE * error, self.task.smallest, self.grids)
        return Optimizer(own, RATE * error, self.task.smallest)

    def _loss(self, index: int) -> Tensor:
        with self.task.student.precision():
            given = self._after.through(index)
        return hidden_loss(given, self._before.remembered(index), self._masks[index])

    def _backward(self, parameters: Sequence[nn.Parameter], batches: Sequence[int]) -> float:
        samples, total = sum(self._rows[index] for index in batches), 0.0

        def gradients(index: int) -> tuple[float, Sequence[Tensor | None]]:
            loss = self._loss(index) * (self._rows[index] / samples)
            return float(loss.detach()), torch.autograd.grad(loss, parameters, allow_unused=True)

        with threads(self.task.jobs) as pool:
            for loss, each in pool.map(gradients, batches):
                total += loss
                add_gradients_(parameters, each)
        return total

    def _judge(self) -> float:
        def lost(index: int) -> float:
            with torch.no_grad():
                return float(self._loss(index))

        with threads(self.task.jobs) as pool:
            return float(np.mean(list(pool.map(lost, range(self.count, self.total)))))


def _some(feeds: Sequence[Feed], student: ModuleRunner) -> list[Feed]:
    """Batches spread over those that there are, as many as `REMEMBERED` allows."""
    with torch.no_grad():
        hidden = student(feeds[0]).hidden
    if not hidden:
        return []
    rows = batch_size(feeds[0])
    each = max(h.numel() * h.element_size() for h in hidden) / rows
    tokens = next(iter(feeds[0].values())).size / rows
    total = sum(each / tokens * elements(feed) for feed in feeds)
    step = max(1, -(-int(total) // REMEMBERED))
    return list(feeds[::step])
