"""What an interrupted healing goes on from: numbers as safetensors, the rest as JSON in their metadata."""

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
    parts: int = 1
    tried: dict[str, float] = field(default_factory=dict[str, float])
    """The held-out loss that each rate came to."""
    begun: float = 0.0
    """Work when the main phase began."""
    judged: int = 0
    """Judgements that the main phase has had."""
    steps: int = 0
    """Of the main phase."""
    usual: float | None = None
    """Of the gradients' norm."""
    best: float = 0.0
    curve: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """Work and held-out loss."""


def write_checkpoint(path: Path, progress: Progress, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write all of it, or nothing."""
    tensors = {
        f"{group}/{name}": value.detach().float().cpu().numpy()
        for group, values in groups.items()
        for name, value in values.items()
    }
    write_tensors(path, tensors, {"progress": json.dumps(asdict(progress))})


def read_checkpoint(path: Path, key: str) -> tuple[Progress, dict[str, dict[str, Tensor]]]:
    """What `write_checkpoint` wrote.

    Raises:
        HealingError: if there is none, or it is of a healing with other options.
    """
    if not path.is_file():
        raise HealingError(f"there is no {path}, so no healing to go on with; leave out --resume")
    tensors, metadata = read_tensors(path)
    try:
        content: dict[str, Any] = parse_json(metadata["progress"])
        content["curve"] = [(float(work), float(loss)) for work, loss in content["curve"]]
        progress = Progress(**content)
    except (KeyError, TypeError, ValueError):
        raise HealingError(f"{path} is damaged; delete it and heal without --resume") from None
    if progress.key != key:
        raise HealingError(
            f"{path} is of a healing with other options or of another model; give the options that it was started "
            "with, or leave out --resume"
        )
    groups: dict[str, dict[str, Tensor]] = {}
    for label, values in tensors.items():
        group, _, name = label.partition("/")
        groups.setdefault(group, {})[name] = torch.from_numpy(values)
    return progress, groups
