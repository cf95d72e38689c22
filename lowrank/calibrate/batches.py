"""Token ids as batches of a model's inputs, without any padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowrank.backends.inputs import BATCH_ROWS, MASK, Feed, Signature, rows_of


def token_batches(lines: Sequence[Sequence[int]], signature: Signature) -> tuple[Feed, ...]:
    """Batches of samples of one length each, so that no row is padded and no padding can enter a Gram; where a graph
    takes one length alone, all are padded to it."""
    if signature.fixed_length is not None:
        return tuple(token_feed(lines[i : i + BATCH_ROWS], signature) for i in range(0, len(lines), BATCH_ROWS))
    by_length: dict[int, list[Sequence[int]]] = {}
    for ids in lines:
        by_length.setdefault(len(ids), []).append(ids)
    batches: list[Feed] = []
    for length, rows in sorted(by_length.items()):
        step = rows_of(length)
        batches += [token_feed(rows[i : i + step], signature) for i in range(0, len(rows), step)]
    return tuple(batches)


def token_feed(rows: Sequence[Sequence[int]], signature: Signature) -> Feed:
    """A batch of samples of one length, or padded to the length that the model takes; where it reads several choices
    of a sample, each has one."""
    length = signature.fixed_length or len(rows[0])
    ids, mask = (np.zeros((len(rows), length), np.int64) for _ in range(2))
    for row, sample in enumerate(rows):
        ids[row, : len(sample)], mask[row, : len(sample)] = sample[:length], 1
    # A decoder that is trained to copy, translate or continue sees text like that of its encoder.
    filled = {
        "input_ids": ids,
        "decoder_input_ids": ids,
        MASK: mask,
        "position_ids": np.broadcast_to(np.arange(length), ids.shape),
    }
    feed = {i.name: filled.get(i.name, np.zeros_like(ids)).astype(i.array_dtype) for i in signature.inputs}
    return {i.name: feed[i.name][:, None] if len(i.dims) == 3 else feed[i.name] for i in signature.inputs}
