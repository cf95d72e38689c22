"""The dense model's outputs on some batches, which are made once as far as there is room for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lowrank.core.distance import Array, Made

REMEMBERED = 1 << 30
"""Bytes that are kept of the dense model's outputs, at most, of all sets together."""


class Room:
    """The bytes that may still be kept."""

    def __init__(self, left: int = REMEMBERED) -> None:
        self.left = left

    def takes(self, nbytes: int) -> bool:
        """Whether there is room for so many bytes, which are then taken."""
        fits = nbytes <= self.left
        self.left -= nbytes if fits else 0
        return fits


class DenseOutputs:
    """What is compared of the dense model's outputs, batch by batch and by name. It is made when it is first asked for;
    what there is no room for is made again each time.

    Args:
        count: of batches.
        compared: from the number of a batch to what is compared of its outputs; the model runs then.
        room: for what is kept.
    """

    def __init__(self, count: int, compared: Callable[[int], dict[str, Array]], room: Room) -> None:
        self.count, self.compared, self.room = count, compared, room
        self._kept: dict[int, dict[str, Array]] = {}
        self._last: tuple[int, dict[str, Array]] = -1, {}
        """The batch that was made last: its outputs are asked for one after the other."""

    def keep(self, compared: Callable[[], Iterator[dict[str, Array]]]) -> None:
        """Keep as many of the first batches as there is room for, if none is kept yet.

        Args:
            compared: makes what is compared of all batches one after the other, for less than one by one.
        """
        if self._kept or self.room.left <= 0:
            return
        for batch, found in enumerate(compared()):
            if not self.room.takes(sum(array.nbytes for array in found.values())):
                return
            self._kept[batch] = found

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, batch: int, /) -> dict[str, Array]:
        if batch in self._kept:
            return self._kept[batch]
        if self._last[0] != batch:
            self._last = batch, self.compared(batch)
        found = self._last[1]
        if self.room.takes(sum(array.nbytes for array in found.values())):
            self._kept[batch] = found
        return found

    def named(self, name: str) -> Made:
        """One of the outputs, batch by batch."""
        return Made(self.count, lambda batch: self[batch][name])
