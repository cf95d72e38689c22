"""Directions that are kept are those of the same numbers in the same metric, and do not fill memory."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from lowrank.core.truncation.directions import Directions, directions
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.known import KnownDirections


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_they_are_made_again_where_anything_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    known, made = KnownDirections(), list[str]()
    matrix, other = normal(4, 6), normal(4, 6, seed=1)
    gram, curvature = Gram.of("input", normal(20, 6)), np.eye(4)

    def of(name: str, matrix: np.ndarray, gram: Gram | None, curvature: np.ndarray | None) -> Directions:
        def make() -> Directions:
            made.append(name)
            return directions(matrix, gram)

        return known.of(name, matrix, gram, curvature, make)

    first = of("a", matrix, gram, None)
    assert of("a", matrix.copy(), gram, None) is first and made == ["a"]
    assert of("a", other, gram, None) is not first
    of("a", matrix, None, None)
    of("a", matrix, gram, curvature)
    of("a", matrix, gram, curvature.copy())
    assert len(made) == 5
    # As it is sent to another process.
    again = copy.copy(known)
    assert again.of("a", matrix, gram, curvature, lambda: first) is first

    monkeypatch.setattr("lowrank.core.truncation.known.ROOM", 2 * first.nbytes)
    for name in "abcbc":
        of(name, matrix, gram, None)
    assert made[5:] == ["a", "b", "c"]
    of("a", matrix, gram, None)
    assert made[8:] == ["a"]
