"""Distillation of the dense model into the compressed one: the loss of a step, and the held-out loss to judge by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Feed, batch_size, elements
from lowrank.backends.torch.workers import Workers
from lowrank.core.distance import Made
from lowrank.errors import HealingError
from lowrank.healing.faults import is_memory
from lowrank.healing.loss import OutputMeasure, hidden_loss, measures_of, pooled_output
from lowrank.healing.module_runner import ModuleRunner, Outputs
from lowrank.healing.optimizer import add_gradients_
from lowrank.parallel import threads


@dataclass(frozen=True, eq=False, slots=True)
class Samples:
    """Batches to learn from (`fit`) and batches to be judged by (`heldout`)."""

    fit: Sequence[Feed]
    heldout: Sequence[Feed]


class Distillation:
    """The loss of the student against the teacher, on batches to learn from and on batches to be judged by.

    The loss is the mean error of the hidden states plus the output's own measure, which is weighted so that at the
    start both are equally large; what it is judged by is the output's measure alone.

    Args:
        dense: the teacher.
        student: the compressed model.
        samples: to learn from, and to be judged by.
        parameters: of the student, which may change.
        smallest: see `Optimizer`.
        workers: that share every batch; this process alone, if not given.
    """

    def __init__(
        self,
        dense: ModuleRunner,
        student: ModuleRunner,
        samples: Samples,
        parameters: Mapping[str, nn.Parameter],
        smallest: Mapping[str, float] | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.workers = workers or Workers()
        self.student, self.parameters, self.smallest = student, dict(parameters), smallest
        feeds, self.together = mixed(samples.fit)
        self.fit, self.heldout = (Teacher(dense, each) for each in (feeds, samples.heldout))
        self.parts = 1
        """Into how many slices a batch is cut, which threads share, or since memory does not hold the whole of it."""
        try:
            self.measures = self._measure()
            hidden, self.before = self._judged()
            """The measure of the student as it was given."""
            if self.together == 1 and self._can_be_cut():
                self.parts = MIXED
        except (RuntimeError, MemoryError) as error:
            if not is_memory(error):
                raise
            rows = max(map(batch_size, samples.heldout))
            raise HealingError(
                f"there is no memory for both models and {rows} samples at a time; give shorter samples"
            ) from None
        self.weight = hidden / self.before if hidden > 0 and self.before > 0 else 1.0
        for parameter in student.module.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def steps(self, seed: int, skip: int = 0) -> Iterator[list[int]]:
        """The batches of each step, without end."""
        return steps_in_turn(len(self.fit.feeds), seed, skip, self.together)

    def backward(self, batches: Sequence[int]) -> float:
        """Add the gradients of a step to those of the parameters; the loss, a mean over its samples by their weights.

        Raises:
            HealingError: if memory does not hold a single sample.
        """
        total = sum(weight_of(self.fit.feeds[index]) for index in batches)
        while True:
            try:
                loss = self._backward(batches, total)
                self.workers.add_up(self.parameters.values())
                return self.workers.total(loss)
            except (RuntimeError, MemoryError) as error:
                if not is_memory(error):
                    raise
            for parameter in self.parameters.values():
                parameter.grad = None
            if self.parts >= max(map(self.rows, batches)):
                raise HealingError("there is no memory for training on a single sample; give shorter samples")
            self.parts *= 2

    def rows(self, index: int) -> int:
        """Samples in a batch."""
        return batch_size(self.fit.feeds[index])

    def judge(self) -> float:
        """The output's measure on the held-out batches; infinite where it is not a finite number."""
        loss = self.workers.agreed(self._judged()[1])
        return loss if math.isfinite(loss) else math.inf

    def judge_other(self, module: nn.Module) -> float:
        """The same for another student in the place of this one."""
        before, self.student = self.student, self.student.with_module(module)
        try:
            return self.judge()
        finally:
            self.student = before

    def _backward(self, batches: Sequence[int], whole: float) -> float:
        """Add the gradients of a step of this weight in all, slice by slice; as many slices run at once as there are
        threads, and are added in their order."""
        slices = [(i, part) for i in batches for part in _slices(self.workers.share(self.rows(i)), self.parts)]
        parameters, total = list(self.parameters.values()), 0.0
        with threads(self.jobs) as pool:
            for loss, gradients in pool.map(lambda each: self._gradients(*each, whole), slices):
                total += loss
                add_gradients_(parameters, gradients)
        return total

    def _gradients(self, index: int, part: slice, whole: float) -> tuple[float, Sequence[Tensor | None]]:
        """The loss of a part of a batch, weighted by its share of a whole step, and its gradients."""
        feed, taught = self.fit.feeds[index], self.fit(index)
        cut = {name: value[part] for name, value in feed.items()}
        loss = self._loss(cut, _cut(taught, part, self.rows(index))) * (weight_of(cut) / whole)
        parameters = list(self.parameters.values())
        return float(loss.detach()), torch.autograd.grad(loss, parameters, allow_unused=True)

    @property
    def jobs(self) -> int:
        """How many slices are run at once; processes that share the work have a thread each."""
        return self.student.jobs if self.workers.count == 1 else 1

    def _can_be_cut(self) -> bool:
        """Whether a part of a batch has the rows of the whole; not scores of samples against all others of the
        batch."""
        feed = self.heldout.feeds[0]
        first = self.heldout.of({name: value[:1] for name, value in feed.items()})
        return all(y.shape[1:] == first.named[name].shape[1:] for name, y in self.heldout(0).named.items())

    def _measure(self) -> list[OutputMeasure]:
        """How each output is measured, by what the dense model gives on the held-out batches."""
        signature = self.student.signature
        outputs = {output.name: self.heldout.named(output.name) for output in signature.compared}
        return measures_of(signature, outputs, self.heldout.feeds)

    def _loss(self, feed: Feed, taught: Outputs) -> Tensor:
        student = self.student(feed)
        if any(y.shape != taught.named[name].shape for name, y in student.named.items() if self._is_scores(name)):
            # Scores of each sample against all others of its batch are no rows of those of a larger one.
            taught = self.fit.of(feed)
        lost = (total / max(rows, 1) for total, rows in self._lost(student, taught, feed))
        loss = self.weight * torch.stack(list(lost)).sum()
        if taught.hidden:
            loss = loss + _mean_hidden(student, taught, self.student.mask(feed))
        return loss

    def _is_scores(self, name: str) -> bool:
        return any(measure.output.name == name and measure.output.kind == "logits" for measure in self.measures)

    def _lost(self, student: Outputs, taught: Outputs, feed: Feed) -> Iterator[tuple[Tensor, int]]:
        """For each output what is lost in all rows of a batch, and their number."""
        for measure in self.measures:
            name = measure.output.name
            yield measure.lost(self.student.signature, student.named[name], taught.named[name], feed)

    def _judged(self) -> tuple[float, float]:
        """The mean errors of hidden states and of the outputs on the held-out batches."""
        hidden, samples = 0.0, 0
        lost, rows = np.zeros(len(self.measures)), np.zeros(len(self.measures), np.int64)
        feeds = self.heldout.feeds
        with threads(self.jobs) as pool:
            for feed, (own, losses) in zip(feeds, pool.map(self._judged_on, range(len(feeds))), strict=True):
                for number, (total, count) in enumerate(losses):
                    lost[number], rows[number] = lost[number] + total, rows[number] + count
                samples += batch_size(feed)
                hidden += batch_size(feed) * own
        return hidden / samples, float((lost / np.maximum(rows, 1)).sum())

    def _judged_on(self, index: int) -> tuple[float, list[tuple[float, int]]]:
        """The mean error of hidden states on a held-out batch, and for each output what is lost there in all rows, and
        their number."""
        feed = self.heldout.feeds[index]
        with torch.no_grad():
            student, taught = self.student(feed), self.heldout(index)
            hidden = float(_mean_hidden(student, taught, self.student.mask(feed))) if taught.hidden else 0.0
            return hidden, [(float(total), count) for total, count in self._lost(student, taught, feed)]


def _mean_hidden(student: Outputs, taught: Outputs, mask: Tensor | None) -> Tensor:
    pairs = zip(imitated(student.hidden), taught.hidden, strict=True)
    return torch.stack([hidden_loss(a, b, mask) for a, b in pairs]).mean()


def imitated(hidden: list[Tensor]) -> list[Tensor]:
    """The outputs of blocks that are imitated: the last one and every second before it. All of them teach no more, and
    fewer batches of them are remembered.

    Example:
        >>> imitated(list("abcdef"))
        ['b', 'd', 'f']
    """
    return hidden[(len(hidden) - 1) % 2 :: 2]


def _slices(rows: slice, parts: int) -> Iterator[slice]:
    count = rows.stop - rows.start
    edges = np.linspace(rows.start, rows.stop, min(parts, count) + 1).astype(int).tolist()
    return (slice(a, b) for a, b in pairwise(edges))


def _cut(outputs: Outputs, part: slice, rows: int) -> Outputs:
    """The samples of a part; what has no batch axis is left whole."""

    def some(tensor: Tensor) -> Tensor:
        return tensor[part] if tensor.shape[:1] == (rows,) else tensor

    return Outputs([some(h) for h in outputs.hidden], {name: some(y) for name, y in outputs.named.items()})


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
    rows = batch_size(feed)
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


def weight_of(feed: Feed) -> float:
    """What a batch counts for in the mean of a step: its samples, each by the root of its length.

    By samples alone passages would be next to nothing beside the short texts of a step, by tokens the short ones, of
    which each says as much of the output as a passage does.

    Example:
        >>> weight_of({"ids": np.zeros((2, 9))}), weight_of({"ids": np.zeros((6, 1))})
        (6.0, 6.0)
    """
    rows = batch_size(feed)
    return rows * math.sqrt(elements(feed) / rows)


REMEMBERED = 1 << 30
"""Bytes of outputs in memory, at most; batches beyond that are run again every time."""


class Teacher:
    """The dense model on a fixed list of batches: the hidden states that are imitated, in bfloat16, and the outputs, of
    embeddings what is left of them by pooling. So most models' outputs for all batches are remembered."""

    def __init__(self, dense: ModuleRunner, feeds: Sequence[Feed]) -> None:
        self.dense, self.feeds = dense, list(feeds)
        self._remembered: dict[int, Outputs] = {}
        self._bytes = 0

    def __call__(self, index: int) -> Outputs:
        """Its hidden states and outputs for a batch."""
        if index in self._remembered:
            return self._remembered[index]
        outputs = self.of(self.feeds[index])
        size = sum(t.numel() * t.element_size() for t in (*outputs.hidden, *outputs.named.values()))
        if self._bytes + size <= REMEMBERED:
            self._remembered[index] = outputs
            self._bytes += size
        return outputs

    def of(self, feed: Feed) -> Outputs:
        """The same for another batch, which is not remembered."""
        signature = self.dense.signature
        with torch.no_grad():
            whole = self.dense(feed)
            named = {
                output.name: pooled_output(signature, output, whole.named[output.name], feed)
                for output in signature.compared
            }
        return Outputs([each.bfloat16() for each in imitated(whole.hidden)], named)

    def named(self, name: str) -> Made:
        """One of its outputs as arrays, batch by batch."""
        return Made(len(self.feeds), lambda batch: np.atleast_1d(self(batch).named[name].float().cpu().numpy()))
