"""The numbers that values within a graph have on data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.inputs import MASK, Feed, Signature, as_taken, batch_size
from lowrank.backends.onnx.moments import token_rows
from lowrank.backends.onnx.runtime import Runner


def values_of(
    runner: Runner, signature: Signature, names: Sequence[str], feeds: Sequence[Feed]
) -> Iterator[dict[str, NDArray[Any]]]:
    """What values are in each sample, vectors x width, without those of padding.

    Args:
        runner: with these values as outputs; what is an input of the graph is read from the feeds.
        signature: how the graph is fed.
        names: of the values.
        feeds: batches, whose samples are run one by one, so that little is in memory at a time.
    """
    shown = [name for name in names if name in runner.outputs]
    for feed in feeds:
        for part in _samples(feed, signature):
            found = {**part, **dict(zip(shown, runner(part, shown), strict=True))}
            mask = part.get(MASK)
            yield {name: np.asarray(token_rows(found[name], mask), np.float32) for name in names}


def _samples(feed: Feed, signature: Signature) -> Iterator[Feed]:
    if signature.fixed_batch is not None or any(each.dims[:1] != ("batch",) for each in signature.inputs):
        yield from as_taken([feed], signature.fixed_batch)
        return
    for row in range(batch_size(feed)):
        yield {name: array[row : row + 1] for name, array in feed.items()}
