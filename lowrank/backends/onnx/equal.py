"""Tensors with the same numbers, found without comparing all with all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

PROBES = 64
"""Numbers of a tensor that are looked at before all of them are."""

Key = TypeVar("Key")


@dataclass(eq=False)
class Seen(Generic[Key]):
    """Arrays by their numbers. Of a matrix its transpose is known, too."""

    _alike: dict[tuple[Any, ...], list[tuple[Key, NDArray[Any]]]] = field(
        default_factory=dict[tuple[Any, ...], list[tuple[Key, NDArray[Any]]]]
    )

    def first(self, key: Key, array: NDArray[Any]) -> tuple[Key, bool]:
        """The first array with the same bits, and whether it holds them transposed; an array that is new is kept.

        Example:
            >>> seen = Seen[str]()
            >>> seen.first("a", np.array([[1, 2], [3, 4]])), seen.first("b", np.array([[1, 3], [2, 4]]))
            (('a', False), ('a', True))
        """
        # A diagonal is that of the transpose, too.
        some = np.diagonal(array) if array.ndim == 2 else array.reshape(-1)
        probe = some[:: max(1, some.size // PROBES)][:PROBES].tobytes()
        alike = self._alike.setdefault((array.dtype, tuple(sorted(array.shape)), probe), [])
        for other, numbers in alike:
            if _same(numbers, array):
                return other, False
            if array.ndim == 2 and _same(numbers, array.T):
                return other, True
        alike.append((key, array))
        return key, False


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    # By their bits: NaN is NaN, and -0 is not 0.
    return a.shape == b.shape and np.array_equal(_bytes(a), _bytes(b))


def _bytes(a: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(a).reshape(-1).view(np.uint8)
