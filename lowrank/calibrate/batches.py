"""Token ids as batches of a model's inputs, without any padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowrank.backends.inputs import MASK, Feed, Signature

BATCH_TOKENS = 4096
BATCH_ROWS = 64


def token_batches(lines: Sequence[Sequence[int]], signature: Signature) -> tuple[Feed, ...]:
    """Batches of samples of one length each, so that no row is padded and no padding can enter a Gram."""
    by_length: dict[int, list[Sequence[int]]] = {}
    for ids in lines:
        by_length.setdefault(len(ids), []).append(ids)
    batches: list[Feed] = []
    for length, rows in sorted(by_length.items()):
        step = max(1, min(BATCH_ROWS, BATCH_TOKENS // length))
        batches += [token_feed(rows[i : i + step], signature) for i in range(0, len(rows), step)]
    return tuple(batches)


def token_feed(rows: Sequence[Sequence[int]], signature: Signature) -> Feed:
    """A batch of samples of one length."""
    ids = np.asarray(rows)
    # A decoder that is trained to copy, translate or continue sees text like that of its encoder.
    filled = {
        "input_ids": ids,
        "decoder_input_ids": ids,
        MASK: np.ones_like(ids),
        "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
    }
    return {i.name: filled.get(i.name, np.zeros_like(ids)).astype(i.array_dtype) for i in signature.inputs}
