"""Samples changed as what a model meets may be: to judge by, where it reads no text, and to learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.inputs import Feed, Signature, batch_size
from lowrank.calibrate.judging_set import JudgingSet
from lowrank.core.distance import Array
from lowrank.errors import first_line

CHANGED = 100
"""Samples of the own data that are changed."""
SPECTROGRAM = "input_features"
DARKER, NOISE = 0.5, 0.25
"""What of the brightness is left; and the noise, in standard deviations of a sample."""


def changed_sets(backend: Backend, feeds: Sequence[Feed]) -> Iterator[JudgingSet]:
    """Some samples: pictures darker and noisier, sound and other numbers noisier, sequences shorter, and sequences of
    tokens also two in one. What the model does not run on is left out, with the reason."""
    some = _first(feeds)
    for name, change in _changes(signature_of(backend), some):
        made = tuple(feed for feed in map(change, some) if feed is not None)
        reason = _refusal(backend, made) if made else "two samples in one are longer than what the model reads"
        if reason:
            yield JudgingSet(name, (), "changed", left_out=reason)
        else:
            yield JudgingSet(name, made, "changed", f"{sum(map(batch_size, made))} samples, {name}")


def with_changes(backend: Backend, feeds: Sequence[Feed]) -> tuple[Feed, ...]:
    """Batches to learn from, and each of them once more, changed in one of the ways that the model runs on, in turn:
    what learns from samples of one form alone forgets the others."""
    signature = signature_of(backend)
    changes = [change for _, change in _changes(signature, feeds) if _runs(backend, change, feeds)]
    changed = (changes[i % len(changes)](feed) for i, feed in enumerate(feeds)) if changes else iter(())
    return (*feeds, *(feed for feed in changed if feed is not None))


def _runs(backend: Backend, change: Callable[[Feed], Feed | None], feeds: Sequence[Feed]) -> bool:
    made = next((made for feed in feeds if (made := change(feed)) is not None), None)
    return made is not None and not _refusal(backend, [made])


def _changes(signature: Signature, some: Sequence[Feed]) -> Iterator[tuple[str, Callable[[Feed], Feed | None]]]:
    """The changes that fit what a model reads, by name."""
    floating = [i for i in signature.inputs if i.is_floating]
    pictures = [i.name for i in floating if len(i.dims) == 4]
    if pictures:
        lowest = {name: _lowest([feed[name] for feed in some]) for name in pictures}
        yield "darker", lambda feed: _darker(feed, lowest)
    if floating:
        yield "noisier", lambda feed: _noisier(feed, [i.name for i in floating])
    if signature.has_sequence or any(i.name == SPECTROGRAM for i in floating):
        yield "shorter", lambda feed: _shorter(feed, signature)
    if all("sequence" in i.dims and not i.is_floating for i in signature.inputs):
        yield "joined", lambda feed: _two_in_one(feed, signature)


def _first(feeds: Sequence[Feed]) -> list[Feed]:
    """The first samples of some batches."""
    some, left = list[Feed](), CHANGED
    for feed in feeds:
        if left > 0:
            some.append({name: values[:left] for name, values in feed.items()})
        left -= batch_size(feed)
    return some


def _refusal(backend: Backend, feeds: Sequence[Feed]) -> str:
    """Why a model does not run on some batches; empty if it does."""
    try:
        for feed in feeds:
            backend.outputs({name: values[:1] for name, values in feed.items()})
    except Exception as error:
        # Its shapes are its own: what it cannot read is no set.
        return f"the model does not run on them: {first_line(error)}"
    return ""


def _lowest(batches: Sequence[Array]) -> Array:
    """The smallest number of each channel."""
    return np.min([batch.min((0, 2, 3)) for batch in batches], axis=0)[:, None, None]


def _darker(feed: Feed, lowest: Feed) -> Feed:
    return {n: lowest[n] + DARKER * (v - lowest[n]) if n in lowest else v for n, v in feed.items()}


def _noisier(feed: Feed, names: Sequence[str]) -> Feed:
    rng = np.random.default_rng(0)
    changed = dict(feed)
    for name in names:
        values = feed[name]
        scale = values.reshape(len(values), -1).std(1).reshape(-1, *[1] * (values.ndim - 1))
        changed[name] = (values + NOISE * scale * rng.standard_normal(values.shape)).astype(values.dtype)
    return changed


def _shorter(feed: Feed, signature: Signature) -> Feed:
    """The first half of every sequence; of a spectrogram of fixed length, silence in the place of the other."""
    changed: dict[str, Array] = {}
    for spec in signature.inputs:
        values = feed[spec.name]
        for axis, dim in enumerate(spec.dims):
            if dim == "sequence":
                values = np.take(values, range(-(-values.shape[axis] // 2)), axis)
        if spec.name == SPECTROGRAM and isinstance(spec.dims[-1], int):
            values = values.copy()
            values[..., values.shape[-1] // 2 :] = values.min()
        changed[spec.name] = values
    return changed


def _two_in_one(feed: Feed, signature: Signature) -> Feed | None:
    """Every two samples as one; none if that would be longer than the model reads."""
    pairs, changed = batch_size(feed) // 2, dict[str, Array]()
    for spec in signature.inputs:
        values, axis = feed[spec.name], spec.dims.index("sequence")
        if not pairs or values.ndim != 2 or 2 * values.shape[axis] > signature.max_sequence:
            return None
        joined = np.concatenate([values[: 2 * pairs : 2], values[1 : 2 * pairs : 2]], axis)
        places = np.broadcast_to(np.arange(joined.shape[1], dtype=joined.dtype), joined.shape)
        changed[spec.name] = places.copy() if spec.name == "position_ids" else joined
    return changed
