"""How far one output of a model is from another: in the measure that fits what the output is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
OutputKind = Literal["logits", "embedding", "values", "choices"]
"""`logits`: scores of classes or tokens, of which the first choice counts. `embedding`: vectors, of tokens that are
pooled or of whole samples, that are compared by their angle. `values`: anything else, of which the numbers count:
maps, scalars, boxes, hidden states. `choices`: whole numbers, such as a class or a place, that are the same or not."""


AS_THEY_ARE = ("values", "choices")
"""Kinds of which the numbers themselves are compared."""
LITTLE = 0.01
"""Nats that logits are taken to tell at least: of what is nearly the same for all inputs, no small difference counts
for much."""


class Batches(Protocol):
    """Outputs, batch by batch: a list of them, or what makes them when they are asked for."""

    def __len__(self) -> int:
        """How many batches there are."""
        ...

    def __getitem__(self, batch: int, /) -> Array:
        """The output for one."""
        ...

    def __iter__(self) -> Iterator[Array]:
        """All of them in their order."""
        ...


class Made:
    """Batches that are made when they are asked for.

    Args:
        count: of batches.
        make: from the number of a batch to the output.
    """

    def __init__(self, count: int, make: Callable[[int], Array]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Array]:
        return map(self._make, range(self._count))

    def __getitem__(self, batch: int, /) -> Array:
        return self._make(batch)


class Reference:
    """The outputs of the dense model on some batches, and the loss of others against them.

    Positions that do not count, and rows in which the dense model itself gives NaN or infinity, are left out: there
    is nothing to compare with.

    Args:
        outputs: one array a batch, samples along the first axis. Values are asked for again with each use, so that they
            need not be kept.
        kind: what they are; scores of a single class are values.
        counted: for each batch which positions count, samples x positions; None where all do, as they do where the
            output has other positions.
        over_positions: whether its last axis is the positions of a sample; those that do not count are then no class
            of logits, and of values each position is a row.
    """

    def __init__(
        self,
        outputs: Batches,
        kind: OutputKind,
        counted: Sequence[Array | None] | None = None,
        over_positions: bool = False,
    ) -> None:
        self.kind: OutputKind = kind_of(outputs, kind)
        self.over_positions = over_positions
        self._counted = list(counted) if counted is not None else [None] * len(outputs)
        self._sound: list[Array] = []
        shapes, whole = list[tuple[int, ...]](), self.kind in AS_THEY_ARE
        for output, given in zip(outputs, self._counted, strict=True):
            self._sound.append(sound_rows(rows_of(output, self.kind, given, over_positions), self.kind))
            shapes.append(output.shape)
            fitting = _fitting(_positions_first(output, self.kind, given, over_positions), given)
            whole = whole and bool(self._sound[-1].all()) and fitting is None
        self.count = sum(int(sound.sum()) for sound in self._sound)
        """How many rows are compared: positions of logits, samples of embeddings, rows of numbers."""
        self._outputs = outputs if self.kind in AS_THEY_ARE else ()
        self._forms = [self._formed(i, y) for i, y in enumerate(outputs)] if self.kind not in AS_THEY_ARE else []
        whole = whole and len({shape[1:] for shape in shapes}) == 1 and sum(shape[0] for shape in shapes) > 1
        centred, self.squares = self._centred([shape[0] for shape in shapes] if whole else None)
        self.spread = centred / self.count if centred and self.count else 1.0
        """What one row has of the dense output's variance, which makes a loss relative; of its squared norm where the
        outputs do not vary, and 1 of logits."""

    @property
    def information(self) -> float:
        """What there is to lose, in the units of the loss: of logits what `information_of` says; 1 of all others, of
        which it is a share."""
        return information_of(self._forms, [None] * len(self._forms)) if self.kind == "logits" else 1.0

    def loss(self, outputs: Sequence[Array]) -> float:
        """What is lost; infinite if it is not a number.

        Of logits the mean divergence KL(dense | other) of a position, in nats. Of embeddings `sum |u - u'|^2` of the
        unit vectors over `sum |u - mean u|^2`; of values the same of the numbers: the share of the variance that is
        not explained. The mean of the dense output explains nothing: a loss of 1. Of choices the share that differ.
        """
        total = sum(float(self.distances(batch, output).sum()) for batch, output in enumerate(outputs))
        loss = total / (self.count * self.spread) if self.count else 0.0
        return max(loss, 0.0) if np.isfinite(loss) else float("inf")

    def distances(self, batch: int, output: Array) -> Array:
        """What each row that is compared of one batch is apart: its divergence, its squared distance, or the share of
        its choices that differ."""
        with np.errstate(over="ignore", invalid="ignore"):
            other = _form(self._rows(batch, output)[self._sound[batch]], self.kind)
            if self.kind == "logits":
                return divergence_terms(self._form(batch), other).sum(-1)
            if self.kind == "choices":
                return np.mean(other != self._form(batch), -1)
            return np.square(np.subtract(other, self._form(batch), dtype=np.float64)).sum(-1)

    def owners(self, batch: int, output: Array) -> Array:
        """For each row that is compared of one batch, the number of its sample there."""
        return owners_of(output, self.kind, self._counted[batch], self.over_positions)[self._sound[batch]]

    def _rows(self, batch: int, output: Array) -> Array:
        return rows_of(output, self.kind, self._counted[batch], self.over_positions)

    def _form(self, batch: int) -> Array:
        """The rows of the dense output that are compared, as they are."""
        return self._forms[batch] if self._forms else self._formed(batch, self._outputs[batch])

    def _formed(self, batch: int, output: Array) -> Array:
        rows, sound = self._rows(batch, output), self._sound[batch]
        # Values are taken as they are, without a copy, where all of them count.
        return _form(rows if sound.all() else rows[sound], self.kind)

    def _centred(self, samples: Sequence[int] | None) -> tuple[float, float]:
        """The sum of squares of the dense output after its constant part, and with it; the second twice, where the
        constant part is all there is; nothing of logits and choices.

        The constant part of embeddings is their mean; of values the mean of each number over the samples where all
        samples have one shape, else the mean of each channel.

        Args:
            samples: of each batch, if a number of a sample is compared with the same one of others.
        """

        def forms() -> Iterator[Array]:
            for batch in range(len(self._sound)):
                form = self._form(batch)
                yield form if samples is None else form.reshape(samples[batch], -1)

        count = self.count if samples is None else sum(samples)
        if self.kind in ("logits", "choices") or not count:
            return 0.0, 0.0
        # In two passes over the batches, since all of them in float64 may be more than memory holds.
        mean = sum(form.sum(0, dtype=np.float64) for form in forms()) / count
        centred = total = 0.0
        for form in forms():
            centred, total = centred + squared_norm(form - mean), total + squared_norm(form)
        # What is left of a constant after rounding is no variance.
        return (centred if centred > 1e-12 * total else total), total


class References:
    """Several outputs of the dense model, by name, and what others lose of all of them.

    Args:
        parts: of each output.
    """

    def __init__(self, parts: Mapping[str, Reference]) -> None:
        self.parts = dict(parts)
        scales = {name: part.information for name, part in self.parts.items()} if len(self.parts) > 1 else {}
        self.weights = {name: 1 / (len(self.parts) * scales.get(name, 1.0)) for name in self.parts}
        """What the loss of each output is multiplied by."""

    def loss(self, outputs: Sequence[Mapping[str, Array]]) -> float:
        """The mean over all outputs of what is lost of each, as a share of what there is to lose: of the variance, or
        of the information, so that no output counts for little because of its units. Of a single output its own
        loss."""
        return sum(
            self.weights[name] * part.loss([np.atleast_1d(y[name]) for y in outputs])
            for name, part in self.parts.items()
        )


def information_of(outputs: Batches, counted: Sequence[Array | None]) -> float:
    """How much logits tell, in nats: the mean divergence of a position's distribution from their mean, which is the
    mutual information of inputs and classes; from the even distribution where the numbers of classes differ.

    Args:
        outputs: logits, batch by batch.
        counted: which positions of each count; None where all do.
    """
    entropy, positions, evenly = 0.0, 0, 0.0
    total: Array | None = None
    classes = set[int]()
    for output, given in zip(outputs, counted, strict=True):
        rows = rows_of(output, "logits", given)
        logs = _form(rows[sound_rows(rows, "logits")], "logits")
        classes.add(logs.shape[-1])
        # The divergence from a distribution that is 1 everywhere is the entropy with its sign turned.
        entropy -= float(divergence_terms(logs, np.zeros_like(logs)).sum())
        positions, evenly = positions + len(logs), evenly + len(logs) * np.log(logs.shape[-1])
        total = np.exp(logs).sum(0) if total is None or len(classes) > 1 else total + np.exp(logs).sum(0)
    if not positions or total is None:
        return LITTLE
    mean = total / positions
    most = evenly / positions if len(classes) > 1 else -float((mean * np.log(np.maximum(mean, 1e-300))).sum())
    return max(most - entropy / positions, LITTLE)


def kind_of(outputs: Batches, kind: OutputKind) -> OutputKind:
    """What outputs are by their shape, too: the score of a single class is a value, since there is no choice."""
    single = kind == "logits" and all(y.ndim < 2 or y.shape[_classes(y)] == 1 for y in outputs)
    return "values" if single else kind


def _classes(output: Array) -> int:
    """The axis of the classes: the second of maps, which have four or more, else the last."""
    return 1 if output.ndim > 3 else -1


def sound_rows(rows: Array, kind: OutputKind) -> Array:
    """Which rows can be compared with: those of finite numbers. A logit may be minus infinity, a probability of zero,
    if not all of its row are."""
    return np.asarray(np.isfinite(rows.max(-1)) if kind == "logits" else np.isfinite(rows).all(-1))


def rows_of(output: Array, kind: OutputKind, counted: Array | None = None, over_positions: bool = False) -> Array:
    """What is compared of an output, a row each: the scores of a position, the vector of a sample, or the numbers of
    a position.

    Args:
        output: samples along the first axis, classes or channels along the last; of maps of scores, with four axes,
            the classes are the second.
        kind: what it is.
        counted: which positions count, samples x positions; one of another shape is ignored.
        over_positions: whether its last axis is the positions; logits of those that do not count are minus infinity.
    """
    if over_positions and kind == "logits" and counted is not None and output.shape == counted.shape:
        return np.where(counted != 0, output, -np.inf)
    output = _positions_first(output, kind, counted, over_positions)
    if kind == "embedding":
        return np.asarray(pooled(output.astype(np.float64, copy=False), counted))
    if output.ndim < 2:
        output = output.reshape(-1, 1)
    if kind == "logits":
        output = np.moveaxis(output, _classes(output), -1)
    fitting = _fitting(output, counted)
    return output.reshape(-1, output.shape[-1]) if fitting is None else output[fitting]


def owners_of(output: Array, kind: OutputKind, counted: Array | None = None, over_positions: bool = False) -> Array:
    """For each of the rows of `rows_of` the number of its sample."""
    output, numbers = _positions_first(output, kind, counted, over_positions), np.arange(len(output))
    fitting = None if kind == "embedding" else _fitting(output, counted)
    if fitting is not None:
        return np.nonzero(fitting)[0] if fitting.ndim == 2 else numbers[fitting]
    return np.repeat(numbers, len(rows_of(output, kind)) // max(len(output), 1))


def _positions_first(output: Array, kind: OutputKind, counted: Array | None, over_positions: bool) -> Array:
    """Numbers of positions as samples x positions x 1, so that each position is a row; anything else as it is."""
    own = over_positions and kind in AS_THEY_ARE and counted is not None and output.shape == counted.shape
    return output[..., None] if own else output


def _fitting(output: Array, counted: Array | None) -> Array | None:
    """Which positions of an output count; None if all do."""
    if counted is None or output.ndim <= counted.ndim or output.shape[: counted.ndim] != counted.shape:
        return None
    return None if counted.all() else counted != 0


def _form(rows: Array, kind: OutputKind) -> Array:
    """Rows as they are compared: log probabilities and unit vectors, both in float64, or the numbers themselves."""
    if kind in AS_THEY_ARE:
        return rows
    values = np.asarray(rows, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "logits":
            return log_probabilities(values)
        return unit(values)


def log_probabilities(logits: Array) -> Array:
    """The logarithm of the softmax over the last axis, in the type of the logits."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence_terms(log_p: Array, log_q: Array) -> Array:
    """What each class adds to the Kullback-Leibler divergence KL(p | q), in nats, of log probabilities."""
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        # A class that p never gives adds nothing, whatever q says of it.
        return np.where(p == 0, 0, p * (log_p - log_q))


def squared_norm(values: Array) -> float:
    """The sum of all squares, in float64."""
    return float(np.square(values, dtype=np.float64).sum())


def pooled(hidden: Array, counted: Array | None = None) -> Array:
    """The mean over the positions of each sample: samples x width.

    Args:
        hidden: samples x positions x width; more axes between count as positions, and two axes are left as they are.
        counted: samples x positions; where it is 0 they do not count. One of another shape is ignored.
    """
    if hidden.ndim < 3:
        return hidden
    if counted is None or counted.shape != hidden.shape[:2]:
        return hidden.reshape(len(hidden), -1, hidden.shape[-1]).mean(1)
    weight = (counted != 0).astype(hidden.dtype)[..., None]
    # What stands at padded positions may be anything, NaN among it.
    return np.where(weight > 0, hidden, 0).sum(1) / np.maximum(weight.sum(1), 1)


def unit(vectors: Array) -> Array:
    """The vectors along the last axis at length 1; a zero vector stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def cosines(a: Array, b: Array) -> Array:
    """The cosine of the angle between each row of one array and the same row of another."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.maximum(norms, 1e-12)
