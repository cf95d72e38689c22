"""CheckpointBackend: the weights of a sharded checkpoint, read one by one. The model is never built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from lowrank.backends.checkpoint.shards import DTYPES, Shards
from lowrank.backends.finite import finite
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.unrun import Unrun
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.weight import Skip, Weight

STREAMED = "the model is streamed weight by weight, and never whole in memory"
REMEDY = "allow it more with --memory, on a machine that has it"


@dataclass(frozen=True, eq=False)
class CheckpointBackend(Unrun):
    """A Hugging Face checkpoint that is larger than the memory it may take.

    It holds names, shapes and places, so it can be sent to another process, which then reads the weights itself.
    """

    shards: Shards
    source: Mapping[str, Any]
    weights: tuple[Weight, ...]
    skips: tuple[Skip, ...]
    stored: Mapping[str, str]
    """By the name of each weight, that of its tensor in the checkpoint."""
    aliases: Mapping[str, str]
    """Layers that are tied to another: the name of the layer whose tensors they share."""
    rebuild: Mapping[str, Any]
    """How `load` builds the model: its class and its dtype."""
    extras: tuple[Path, ...] = ()
    """Files that belong to the model and are copied along."""
    tokenizer: Path | None = None
    signature: Signature | str = STREAMED
    """How its blocks are fed, where they are run; see `fed`."""
    feeding: Signature | str = STREAMED
    """How its blocks would be fed if they were run."""

    @property
    def refusal(self) -> str:
        """Why the model cannot be run as a whole, and what to try."""
        return f"{STREAMED}; {REMEDY}"

    @cached_property
    def by_name(self) -> dict[str, Weight]:
        """The weights by name."""
        return {weight.name: weight for weight in self.weights}

    @property
    def params(self) -> int:
        """Numbers in the checkpoint."""
        return sum(stored.params for stored in self.shards.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.shards.nbytes

    def dtype(self, name: str) -> torch.dtype:
        """The type that a weight is stored in."""
        return DTYPES[self.shards.tensors[self.stored[name]].dtype]

    def read(self, name: str) -> Matrix:
        """One weight: in float64, or in float32 if it is stored in 16 bits or fewer, whose rounding is coarser.

        Raises:
            NonFiniteWeight: if it holds NaN or infinity.
        """
        tensor = self.shards.tensor(self.stored[name])
        wide = torch.float32 if tensor.element_size() <= 2 else torch.float64
        shape = tuple(tensor.shape)
        matrix = self.by_name[name].view.matrix(tensor.to(wide).numpy())
        return finite(name, cast(Matrix, matrix), shape)

    def fed(self) -> CheckpointBackend:
        """The same checkpoint, to be run block by block."""
        return replace(self, signature=self.feeding)

    def fed_with(self, signature: Signature, feed: Feed | None = None) -> CheckpointBackend:
        """The same checkpoint with another description of its inputs; its outputs are not known."""
        return replace(self, signature=signature)

    def with_tokenizer(self, tokenizer: Path) -> CheckpointBackend:
        """The same checkpoint with another tokenizer."""
        return replace(self, tokenizer=tokenizer)

    rewrite = save = reloaded = saved_in = Unrun.refuse
    """What is written is never whole in memory either."""
