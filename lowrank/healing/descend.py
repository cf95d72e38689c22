"""Going down a loss, step by step, until a part of the work is over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from lowrank.healing.optimizer import Diverged, Optimizer
from lowrank.healing.work import Part


def descend(
    backward: Callable[[Sequence[int]], float],
    steps: Iterator[Sequence[int]],
    optimizer: Optimizer,
    part: Part,
    cost: float = 1.0,
) -> Iterator[float]:
    """Make steps; after each, how much of the part is over.

    Args:
        backward: adds the gradients of a step's batches, and gives their loss.
        steps: the batches of each.
        optimizer: of the parameters.
        part: when to end.
        cost: of a step, in whole steps.

    Raises:
        Diverged: at the first loss or gradient that is no finite number, before the step is made.
    """
    while (share := part.share) < 1:
        loss = backward(next(steps))
        if not math.isfinite(loss):
            optimizer.adam.zero_grad()
            raise Diverged("the loss is not finite")
        optimizer.step(share)
        part.work.count(cost)
        yield part.share
