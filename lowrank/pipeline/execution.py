"""Execution: how work is done. It changes nothing of what comes out but the last digits."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from lowrank.backends.memory import available_memory, used_memory
from lowrank.core.cost import item_bytes
from lowrank.core.weight import Weight
from lowrank.errors import ResourceError
from lowrank.machine import cores
from lowrank.parallel import Pool, cluster, threads


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How work is done: in how much memory, where, and from where on."""

    memory: int | None = None
    """Bytes that the process may take in all; None for what the machine has left. A Hugging Face folder that needs more
    is streamed."""
    stream: bool | None = None
    """Whether to stream; None for where it is needed."""
    scheduler: str | None = None
    """Of a Dask cluster; None for threads of this process. Models are streamed, as workers read them themselves."""
    keep_directions: bool = True
    """Whether the analysis of a streamed model without data keeps what truncation needs, so that no weight that
    keeps at most half of its rank is decomposed twice. It takes disk: see `directions_bytes`."""
    resume: bool = False
    """Go on with what an earlier run left unfinished."""

    @property
    def streamed(self) -> bool | None:
        """Whether models are streamed; None if that depends on their size."""
        return True if self.scheduler is not None else self.stream

    @property
    def whole(self) -> Execution:
        """The same with models whole in memory."""
        return replace(self, stream=False, scheduler=None)

    @contextmanager
    def pool(self, weights: Sequence[Weight], calibrated: bool = False) -> Generator[Pool]:
        """Where jobs on some weights run, as many at once as there is memory for.

        Raises:
            ResourceError: if there is not enough for one.
            ClusterError: if the cluster cannot be reached.
        """
        if self.scheduler is not None:
            with cluster(self.scheduler) as pool:
                yield pool
            return
        with threads(self.jobs(weights, calibrated)) as pool:
            yield pool

    def jobs(self, weights: Sequence[Weight], calibrated: bool = False) -> int:
        """How many weights can be worked on at once.

        Raises:
            ResourceError: if not one; it names the largest.
        """
        if not weights:
            return 1
        largest = max(weights, key=working_bytes)
        need = working_bytes(largest, calibrated)
        left = self.left()
        count = min(left // max(need, 1), cores())
        if count < 1:
            raise ResourceError(
                f"{largest.name} ({largest.rows} x {largest.cols}) takes {_megabytes(need)} to "
                f"decompose, and {_megabytes(left)} are left beside what the program itself takes; allow more with "
                "--memory, or leave it out with --exclude"
            )
        return count

    def left(self) -> int:
        """Bytes that matrices may take."""
        free = available_memory()
        return free if self.memory is None else min(free, self.memory - used_memory())


def working_bytes(weight: Weight, calibrated: bool = False) -> int:
    """What one weight takes at most while it is decomposed and factored.

    In the metric of data there are moments of two folds beside it, and all is in float64.

    Measured with `tools/bench_scale.py`.
    """
    width = 4 if item_bytes(weight.dtype) <= 2 and not calibrated else 8
    small, large = sorted(weight.shape)
    # Eigenvectors with their workspace, and later the factors with what pivots and checks them.
    more = max((10 if calibrated else 6) * small**2, 3 * small * (small + large))
    return int(weight.stack * small * large * (item_bytes(weight.dtype) + 2 * width) + more * width)


def _megabytes(count: int) -> str:
    return f"{max(count, 0) / 1e6:,.0f} MB"
