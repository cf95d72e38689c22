"""Fidelity: how often a user of the compressed model gets the dense model's answer, on data that neither ranks nor
factors were chosen by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Protocol

from lowrank.backends.base import Backend, Outputs, signature_of
from lowrank.backends.inputs import Feed
from lowrank.core.distance import Array, OutputKind, kind_of
from lowrank.evaluate.dense_outputs import DenseOutputs, Room
from lowrank.evaluate.likeness import Likeness
from lowrank.evaluate.one_output import OneOutput
from lowrank.progress import Track, silent


class Runs(Protocol):
    """Anything that gives the outputs of a model."""

    def outputs(self, feed: Feed) -> Outputs:
        """All outputs of one forward pass, by name."""
        ...

    def outputs_of(self, feeds: Sequence[Feed]) -> Iterator[Outputs]:
        """The same for each of some batches, in their order."""
        ...

    def run(self, feed: Feed) -> Array:
        """The output that the model is about."""
        ...


class Judge:
    """The dense model's outputs on some batches, which are computed once, and the likeness of others to them.

    The figures, by what an output is:

    - logits: `agreement` of the first choice at the positions that count, and `kl`, the mean divergence of the dense
      distribution to the other one, in nats;
    - embeddings: `ranking`, the mean nDCG@10 of each sample's nearest others (see `core.ranking`), `spearman` of all
      similarities, and the mean `cosine` of the two vectors of a sample;
    - values: `explained`, the share of the dense output's variance after its constant part (see `Reference`);
    - all: `relative_error`, `|y - y'| / |y|` of what is compared.

    Args:
        dense: the model.
        feeds: the batches.
        room: for what is kept of its outputs.
    """

    def __init__(self, dense: Backend, feeds: Sequence[Feed], room: Room | None = None) -> None:
        self.dense, self.feeds = dense, list(feeds)
        self._signature = signature_of(dense)
        self._room = room or Room()
        self._first: dict[int, Outputs] = {}
        """The outputs of the first batch, until what is compared of them is known."""

    @cached_property
    def kinds(self) -> dict[str, OutputKind]:
        """What each output that is judged by is, by its shape, too, which the first batch shows."""
        kinds: dict[str, OutputKind] = {output.name: output.kind for output in self._signature.compared}
        if "logits" not in kinds.values():
            return kinds
        shown = self._first[0] = self.dense.outputs(self.feeds[0])
        return {name: kind_of([shown[name]], kind) for name, kind in kinds.items()}

    @cached_property
    def _outputs(self) -> DenseOutputs:
        return DenseOutputs(len(self.feeds), self._compared, self._room)

    @cached_property
    def _measures(self) -> list[OneOutput]:
        """One for each output, in order."""
        outputs = (replace(output, kind=self.kinds[output.name]) for output in self._signature.compared)
        return [
            OneOutput(output, [self._signature.counted(feed, output) for feed in self.feeds], self._outputs)
            for output in outputs
        ]

    def against(self, model: Runs, track: Track = silent, doing: str = "measuring fidelity") -> list[Likeness]:
        """The likeness of each output of another model, which is run once on every batch."""
        measures = self._measures
        self._outputs.keep(self._all_compared)
        measures = [measure.begun() for measure in measures]
        for i, outputs in enumerate(track(model.outputs_of(self.feeds), doing, len(self.feeds))):
            for measure in measures:
                measure.add(i, outputs[measure.name])
        return [measure.likeness() for measure in measures]

    def _compared(self, i: int) -> dict[str, Array]:
        """What is compared of the dense model's outputs for a batch."""
        outputs = self._first.pop(i, None) or self.dense.outputs(self.feeds[i])
        return self._of(i, outputs)

    def _all_compared(self) -> Iterator[dict[str, Array]]:
        first = [self._first.pop(0)] if self._first else []
        rest = self.dense.outputs_of(self.feeds[len(first) :])
        return (self._of(i, outputs) for i, outputs in enumerate(chain(first, rest)))

    def _of(self, i: int, outputs: Outputs) -> dict[str, Array]:
        return {measure.name: measure.compared(i, outputs[measure.name]) for measure in self._measures}
