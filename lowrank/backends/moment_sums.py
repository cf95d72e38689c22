"""Sums of moments of batches that several threads run, in the order of the batches."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Condition
from typing import TypeVar

from lowrank.core.truncation.gram import Gram, Tokens
from lowrank.parallel import threads

Observe = Callable[[str, Gram | Tokens], None]
T = TypeVar("T")


class MomentSums:
    """The sum of what batches show of each weight.

    Each batch adds to a sum when all batches before it have done so: the last bits do not depend on the number of
    threads, and there is one sum, whatever their number. A thread that is ahead waits at most for the layer that the
    one before it is at.

    Args:
        zeros: an empty Gram for each name; their moments become those of the sums, lower triangles alone.
    """

    def __init__(self, zeros: Mapping[str, Gram]) -> None:
        self.grams = dict(zeros)
        self._turn = Condition()
        self._ended: set[int] = set()
        self._first = 0
        """All batches before it have ended."""
        self._shown: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._once: frozenset[str] = frozenset()
        """The weights that the first batch showed once. Of others a batch that runs may show more."""

    @contextmanager
    def batch(self, number: int) -> Iterator[Observe]:
        """What takes the moments that a batch shows; the batch ends with the block.

        Args:
            number: its place among all batches, which are begun in their order.
        """
        try:
            yield lambda name, gram: self._add(number, name, gram)
        finally:
            with self._turn:
                self._ended.add(number)
                while self._first in self._ended:
                    if self._first == 0:
                        self._once = frozenset(name for name, count in self._shown[0].items() if count == 1)
                    self._shown.pop(self._first, None)
                    self._first += 1
                self._turn.notify_all()

    def _add(self, number: int, name: str, gram: Gram | Tokens) -> None:
        with self._turn:
            self._turn.wait_for(lambda: all(self._is_past(other, name) for other in range(self._first, number)))
        # No other thread is at this sum: later batches wait for this one.
        self.grams[name] = gram.added_to(self.grams[name])
        with self._turn:
            self._shown[number][name] += 1
            self._turn.notify_all()

    def _is_past(self, number: int, name: str) -> bool:
        return number in self._ended or (name in self._once and self._shown[number][name] > 0)


def sum_moments(
    zeros: Mapping[str, Gram], batches: Iterable[T], watch: Callable[[T, Observe], None], jobs: int
) -> dict[str, Gram]:
    """The sums of what all batches show.

    Args:
        zeros: an empty Gram for each name; they become the sums.
        batches: in their order.
        watch: runs one, such as what `Backend.watching` gives.
        jobs: how many batches are run at once.
    """
    sums = MomentSums(zeros)

    def run(batch: tuple[int, T]) -> None:
        number, own = batch
        with sums.batch(number) as observe:
            watch(own, observe)

    with threads(jobs) as pool:
        deque(pool.map(run, enumerate(batches)), maxlen=0)
    return {name: gram.mirrored() for name, gram in sums.grams.items()}
