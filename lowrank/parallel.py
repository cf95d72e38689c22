"""Parallel work on many items: on threads, or on the workers of a Dask cluster."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from threading import Condition
from typing import Any, Generic, TypeVar

from lowrank.errors import ClusterError, first_line
from lowrank.machine import cores

T = TypeVar("T")
R = TypeVar("R")

WAIT = "20s"
"""For a scheduler to answer."""
RETRIES = 10
"""Of a job whose worker was lost."""
OPENMP = "OMP_NUM_THREADS"
ALONE: ContextVar[bool] = ContextVar("a product has one thread", default=False)


def processes() -> tuple[int, int]:
    """Which of how many processes this is, as `accelerate launch` and `torchrun` say; the only one without them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True, slots=True)
class Pool:
    """An executor, and how many jobs it runs at once."""

    executor: Executor
    jobs: int
    """How many jobs run in parallel."""
    remote: bool = False
    """Whether in other processes: what is sent there must open its files itself."""

    def map(self, job: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`job(item)` for every item, in order, with at most two items for each place in flight."""
        if self.jobs == 1 and not self.remote:
            return map(job, items)
        return windowed_map(Limited(job) if self.remote else job, items, self.executor, 2 * self.jobs)


@dataclass(frozen=True, slots=True)
class Limited(Generic[T, R]):
    """A job in another process with one thread for its products, as threads here have."""

    job: Callable[[T], R]

    def __call__(self, item: T) -> R:
        """The job's result."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return self.job(item)


@contextmanager
def one_thread_each() -> Generator[None]:
    """Inside the block (or the function that this decorates) a product of matrices has one thread, in any library.

    Threads that share a product wait for the one that lost its core, as happens all the time on a busy machine, and
    gain little with matrices of these sizes. Work is spread over samples and weights instead.
    """
    if ALONE.get():
        yield
        return
    from threadpoolctl import threadpool_limits

    torch, named = sys.modules.get("torch"), os.environ.get(OPENMP)
    # The cores are counted before what is loaded inside the block is told to take one.
    before = cores()
    if torch is not None:
        before = torch.get_num_threads()
    os.environ[OPENMP] = "1"
    alone = ALONE.set(True)
    try:
        with threadpool_limits(1):
            if torch is not None:
                torch.set_num_threads(1)
            yield
    finally:
        ALONE.reset(alone)
        os.environ.pop(OPENMP)
        os.environ.update({} if named is None else {OPENMP: named})
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(before)


@contextmanager
def threads(jobs: int | None = None) -> Generator[Pool]:
    """A pool of threads; what they multiply with BLAS shares the cores that are left.

    With a job on each core a product has one thread: matrices of these sizes scale over jobs, not inside one, and the
    last bits then do not depend on how many jobs run.

    Args:
        jobs: how many run in parallel; by default one for each core, as LAPACK releases the GIL.
    """
    from threadpoolctl import threadpool_limits

    jobs = min(jobs or cores(), cores())
    share = max(1, cores() // jobs)
    # To look for all libraries takes milliseconds.
    limits = nullcontext() if share == 1 and ALONE.get() else threadpool_limits(share)
    with limits, ThreadPoolExecutor(jobs) as executor:
        yield Pool(executor, jobs)


class InTurn:
    """Lets jobs that run at once do one part of their work in the order of their numbers, from 0 on."""

    def __init__(self) -> None:
        self._turn = Condition()
        self._next = 0

    @contextmanager
    def after(self, number: int, make: Callable[[], R]) -> Generator[R]:
        """What `make` gives, inside the block, which no other job is in; it ends the job's turn, as an error does."""
        try:
            made = make()
            self._await(number)
            yield made
        finally:
            self._await(number)
            with self._turn:
                self._next += 1
                self._turn.notify_all()

    def _await(self, number: int) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._next == number)


@contextmanager
def cluster(address: str) -> Generator[Pool]:
    """The workers of a Dask scheduler.

    Args:
        address: such as `tcp://host:8786`.

    Raises:
        ClusterError: if there is no scheduler, it has no workers, or Dask is not installed.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError("--scheduler needs Dask: pip install 'lowrank[dask]', here and on the workers") from None
    with ExitStack() as stack:
        try:
            client: Any = stack.enter_context(Client(address, timeout=WAIT, set_as_default=False))
            client.wait_for_workers(1, timeout=WAIT)
            places = sum(client.nthreads().values())
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"no workers at {address} ({first_line(error)}); start `dask scheduler` and `dask worker {address}`, "
                "and let this machine reach them"
            ) from None
        yield Pool(client.get_executor(pure=False, retries=RETRIES), places, remote=True)


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
    owned = ThreadPoolExecutor(cores()) if executor is None else nullcontext(executor)
    waiting: deque[Future[R]] = deque()
    with owned as pool:
        try:
            for item in items:
                # Each job in a copy of its own: two threads cannot be in one context. Other processes get none.
                if isinstance(pool, ThreadPoolExecutor):
                    waiting.append(pool.submit(copy_context().run, job, item))
                else:
                    waiting.append(pool.submit(job, item))
                if len(waiting) >= (window or 2 * cores()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
