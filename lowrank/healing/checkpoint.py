"""The file that an interrupted healing goes on from: numbers as safetensors, the rest as JSON in their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lowrank.artifacts.files import parse_json, read_tensors, write_tensors
from lowrank.errors import HealingError

Phase = Literal["blocks", "search", "main"]


@dataclass
class Progress:
    """How far a healing has come."""

    key: str
    """Hash of what it was asked for; another healing cannot go on from it."""
    phase: Phase = "blocks"
    blocks: int = 0
    """How many are done."""
    done: float = 0.0
    """Work, in seconds or steps."""
    before: float = 0.0
    """The held-out loss at the start."""
    weight: float = 1.0
    """Of the output's loss beside that of the hidden states."""
    parts: int = 1
    """Slices that a batch is cut into."""
    tried: dict[str, float] = field(default_factory=dict[str, float])
    """The held-out loss that each rate came to."""
    rate: float = 0.0
    """Of the main phase."""
    begun: float = 0.0
    """Work when the main phase began, or began again."""
    judged: int = 0
    """Judgements that the main phase has had."""
    steps: int = 0
    """Steps that the main phase has made."""
    first: int = 0
    """How many of them before it began, or began again."""
    usual: float | None = None
    """The usual norm of the gradients."""
    best: float = 0.0
    """The lowest held-out loss so far."""
    curve: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """Work and held-out loss."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where an interrupted healing is kept, and whether to go on from there."""

    path: Path | None = None
    """The file; None keeps nothing."""
    key: str = ""
    """Hash of everything that was asked for."""
    resume: bool = False
    """Go on with the healing that the file holds."""

    def write(self, progress: Progress, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write all of it, or nothing."""
        assert self.path is not None
        tensors = {
            f"{group}/{name}": value.detach().float().cpu().numpy()
            for group, values in groups.items()
            for name, value in values.items()
        }
        write_tensors(self.path, tensors, {"progress": json.dumps(asdict(progress))})

    def read(self) -> tuple[Progress, dict[str, dict[str, Tensor]]]:
        """What `write` wrote.

        Raises:
            HealingError: if there is no such file, or it is of a healing with other options.
        """
        if self.path is None:
            raise HealingError("there is no run folder to resume from")
        if not self.path.is_file():
            raise HealingError(f"there is no {self.path}, so no healing to go on with; leave out --resume")
        tensors, metadata = read_tensors(self.path)
        try:
            content: dict[str, Any] = parse_json(metadata["progress"])
            content["curve"] = [(float(work), float(loss)) for work, loss in content["curve"]]
            progress = Progress(**content)
        except (KeyError, TypeError, ValueError):
            raise HealingError(f"{self.path} is damaged; delete it and heal without --resume") from None
        if progress.key != self.key:
            raise HealingError(
                f"{self.path} is of a healing with other options or of another model; give the options that it was "
                "started with, or leave out --resume"
            )
        groups: dict[str, dict[str, Tensor]] = {}
        for label, values in tensors.items():
            group, _, name = label.partition("/")
            groups.setdefault(group, {})[name] = torch.from_numpy(values)
        return progress, groups
