"""How much of the allowed work is done: by the clock, or by steps."""

from __future__ import annotations

import time

from lowrank.backends.torch.workers import Workers


class WorkLimit:
    """Counts seconds, or steps where their number is given; a run by steps repeats exactly.

    Args:
        seconds: what is allowed, unless `steps` are given.
        steps: whole steps, each with a forward and a backward pass through the model.
        done: what an interrupted run has done already.
        workers: that go by one clock; each by its own, if not given.
    """

    def __init__(
        self, seconds: float, steps: int | None = None, done: float = 0.0, workers: Workers | None = None
    ) -> None:
        self.workers = workers
        self.by_steps = steps is not None
        self.total = float(steps) if steps is not None else seconds
        self._done, self._start = done, time.monotonic()

    @property
    def done(self) -> float:
        """In seconds or steps."""
        if self.by_steps:
            return self._done
        passed = self._done + time.monotonic() - self._start
        return passed if self.workers is None else self.workers.agreed(passed)

    def count(self, steps: float) -> None:
        """Steps made; a step through one of six blocks is a sixth."""
        if self.by_steps:
            self._done += steps


class Span:
    """A part of the work, with a beginning and an end.

    Args:
        work: the whole.
        length: of the part, in what the work counts.
        begun: where it began, if not now.
    """

    def __init__(self, work: WorkLimit, length: float, begun: float | None = None) -> None:
        self.work, self.length = work, length
        self.begun = work.done if begun is None else begun

    @property
    def share(self) -> float:
        """How much of it is over, 1 at the end."""
        return min((self.work.done - self.begun) / self.length, 1.0) if self.length > 0 else 1.0
