"""The dense model's outputs on some batches, which are made once as far as there is room for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed
from lowrank.core.distance import Array

REMEMBERED = 1 << 30
"""Bytes that are kept of the dense model's outputs, at most, of all sets together."""


class Room:
    """The bytes that may still be kept."""

    def __init__(self, left: int = REMEMBERED) -> None:
        self.left = left

    def takes(self, array: Array) -> bool:
        """Whether there is room for an array, which then has it."""
        fits = array.nbytes <= self.left
        self.left -= array.nbytes if fits else 0
        return fits


class DenseOutputs:
    """What is compared of the dense model's output, batch by batch. It is made when it is first asked for; what there
    is no room for is made again each time.

    Args:
        dense: the model.
        feeds: the batches.
        compared: from the number of a batch and its output to what is compared of it.
        room: for what is kept.
    """

    def __init__(
        self, dense: Backend, feeds: Sequence[Feed], compared: Callable[[int, Array], Array], room: Room
    ) -> None:
        self.dense, self.feeds, self.compared, self.room = dense, feeds, compared, room
        self._kept: dict[int, Array] = {}

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, batch: int, /) -> Array:
        if batch in self._kept:
            return self._kept[batch]
        found = self.compared(batch, self.dense.run(self.feeds[batch]))
        if self.room.takes(found):
            self._kept[batch] = found
        return found
