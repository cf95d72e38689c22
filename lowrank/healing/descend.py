"""Going down a loss, batch by batch, until a part of the work is over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from lowrank.healing.optimizer import Diverged, Optimizer
from lowrank.healing.work import Part


def descend(
    backward: Callable[[int], float], batches: Iterator[int], optimizer: Optimizer, part: Part, cost: float = 1.0
) -> Iterator[float]:
    """Make steps; after each, how much of the part is over.

    Args:
        backward: adds the gradients of a batch, and gives its loss.
        batches: which one comes next.
        optimizer: of the parameters.
        part: when to end.
        cost: of a step, in whole steps.

    Raises:
        Diverged: at the first loss or gradient that is no finite number, before the step is made.
    """
    while (share := part.share) < 1:
        loss = backward(next(batches))
        if not math.isfinite(loss):
            optimizer.adam.zero_grad()
            raise Diverged
        optimizer.step(share)
        part.work.count(cost)
        yield part.share
