"""One function: a map over any `concurrent.futures.Executor` that holds only a window of results at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def windowed_map(
    job: Callable[[T], R], items: Iterable[T], executor: Executor | None = None, window: int | None = None
) -> Iterator[R]:
    """`job(item)` for every item, in the order of the items, with at most `window` of them in flight.

    `Executor.map` submits everything at once, which would hold every matrix of a model in memory. What the caller has
    set in context variables is set in threads too.

    Args:
        job: what to do; with a process pool or a cluster it must be importable there.
        items: taken lazily.
        executor: any `concurrent.futures.Executor`; by default a thread for each core, as LAPACK releases the GIL.
        window: jobs in flight; by default two for each core.

    Example:
        >>> list(windowed_map(abs, [-1, 2, -3]))
        [1, 2, 3]
    """
    cores = os.cpu_count() or 1
    owned = ThreadPoolExecutor(cores) if executor is None else nullcontext(executor)
    waiting: deque[Future[R]] = deque()
    with owned as pool:
        try:
            for item in items:
                # Each job in a copy of its own: two threads cannot be in one context. Other processes get none.
                if isinstance(pool, ThreadPoolExecutor):
                    waiting.append(pool.submit(copy_context().run, job, item))
                else:
                    waiting.append(pool.submit(job, item))
                if len(waiting) >= (window or 2 * cores):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
