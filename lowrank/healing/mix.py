"""Which batches make a step: several of different lengths together, since a batch has samples of one length alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lowrank.backends.inputs import Feed

MIXED = 4
"""Batches of a step, where lengths differ: their gradients point a better way than those of one length."""


def mixed(feeds: Sequence[Feed]) -> tuple[list[Feed], int]:
    """Batches cut so that a step can take several for the price of one, and how many it takes.

    Batches whose samples all have one shape are mixed already: they stay as they are, and make a step each.

    Example:
        >>> cut, together = mixed([{"ids": np.zeros((8, 5))}, {"ids": np.zeros((2, 9))}])
        >>> [len(feed["ids"]) for feed in cut], together
        ([2, 2, 2, 2, 1, 1], 4)
    """
    if len({tuple(values.shape[1:] for values in feed.values()) for feed in feeds}) == 1:
        return list(feeds), 1
    return [part for feed in feeds for part in _parts(feed)], MIXED


def _parts(feed: Feed) -> Iterator[Feed]:
    rows = len(next(iter(feed.values())))
    for part in np.array_split(np.arange(rows), min(MIXED, rows)):
        yield {name: values[part] for name, values in feed.items()}


def steps_in_turn(count: int, seed: int, skip: int = 0, together: int = 1) -> Iterator[list[int]]:
    """Indices of the batches of each step, without end: every batch once before any comes again.

    Args:
        count: of batches.
        seed: of the order, which is drawn anew for every round.
        skip: how many steps have been made already.
        together: batches of a step; the last step of a round may have fewer.
    """
    a_round = -(-count // together)
    turn, at = divmod(skip, a_round)
    while True:
        order = np.random.default_rng((seed, turn)).permutation(count).tolist()
        yield from (order[i : i + together] for i in range(at * together, count, together))
        turn, at = turn + 1, 0
