"""Directions that are asked for again and again: models of several keep ratios are made from the same ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import numpy as np

from lowrank.core.linalg.eigen import Matrix
from lowrank.core.truncation.directions import Directions
from lowrank.core.truncation.gram import Gram

ROOM = 1 << 27
"""Bytes that are kept, at most."""


class KnownDirections:
    """The directions of the weights that were asked for last, as many as fit into `ROOM`."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, tuple[tuple[object, ...], Directions]] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[KnownDirections], tuple[()]]:
        # Another process begins with none.
        return KnownDirections, ()

    def of(
        self, name: str, matrix: Matrix, gram: Gram | None, curvature: Matrix | None, make: Callable[[], Directions]
    ) -> Directions:
        """Those of a weight with these numbers and metrics, or else what `make` gives."""
        # Moments are objects that live on; a matrix is read anew each time, and known by its size.
        key = _Same(gram), _Same(curvature), matrix.shape, float(np.vdot(matrix, matrix))
        with self._lock:
            before = self._found.get(name)
            if before is not None and before[0] == key:
                self._found.move_to_end(name)
                return before[1]
        found = make()
        with self._lock:
            self._found[name] = key, found
            self._found.move_to_end(name)
            while len(self._found) > 1 and sum(each.nbytes for _, each in self._found.values()) > ROOM:
                self._found.popitem(last=False)
        return found


class _Same:
    """Equal to itself alone: an object that is held, so that no other has its address."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.held is self.held

    def __hash__(self) -> int:
        return id(self.held)
