"""How a model is healed: what a user may choose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from lowrank.errors import HealingError

if TYPE_CHECKING:
    from lowrank.backends.base import Backend
    from lowrank.backends.onnx.backend import OnnxBackend

Initial = Literal["discarded", "zero"]
"""What an adapter begins as: the best of what truncation left out, if held-out samples find that better, or nothing."""
Fold = Literal["no", "exact", "rank"]
"""Whether an adapter stays by itself, or becomes part of the factors, whose ranks grow (`exact`) or are cut back
(`rank`). Layers that share a factor with others have no adapter then."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is healed."""

    minutes: float = 10.0
    """How long, all trials included."""
    steps: int | None = None
    """So many steps instead; then the same seed gives the same model."""
    seed: int = 0
    """Of the order of the samples, and of new adapters."""
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:1`."""
    adapter: int | None = None
    """Freeze the model, and train a residual of this rank beside each factored layer."""
    initial: Initial = "discarded"
    """What an adapter begins as: the best of what truncation left out, or nothing; nothing if it is cut back again."""
    fold: Fold = "no"
    """Keep an adapter by itself; or fold it into the factors, whose ranks grow, or are cut back to what they were."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise HealingError(f"{self.minutes} minutes were given for healing; give a number above 0 such as 10")
        if self.steps is not None and self.steps < 1:
            raise HealingError(f"healing takes at least one step, and {self.steps} were given; give some hundreds")
        if self.adapter is not None and self.adapter < 1:
            raise HealingError(f"an adapter has at least rank 1, and {self.adapter} was given; give a rank such as 8")

    @property
    def keeps_adapter(self) -> bool:
        """Whether an adapter is trained and stays by itself, so that the model stays as it is."""
        return self.adapter is not None and self.fold == "no"


def check_trainable(dense: Backend) -> None:
    """Check that a model can be trained block by block, and again for other budgets.

    Raises:
        HealingError: if it is no module, or cannot be run.
    """
    if dense.source["kind"] == "onnx":
        raise HealingError(
            "an ONNX graph cannot be trained in blocks, which it does not name; `lowrank heal` trains the graph of a "
            "finished run as a whole"
        )
    if isinstance(dense.signature, str):
        raise HealingError(f"the model cannot be run, so it cannot be trained: {dense.signature}")


def check_healable(dense: Backend, training: Training, exact: bool) -> None:
    """Check that a finished run of a model can be healed.

    Args:
        dense: the model.
        training: how it would be trained.
        exact: whether the run's graph has float32 and the standard's operators alone.

    Raises:
        HealingError: if it cannot be run; or if it is a graph of one batch size, one whose run's is rounded or fused,
            or one that is to take an adapter.
        UnsupportedModel: if it is a graph with an operator that cannot be trained.
    """
    if dense.source["kind"] != "onnx" or isinstance(dense.signature, str):
        check_trainable(dense)
        return
    if training.adapter is not None:
        raise HealingError("an ONNX graph takes no adapter; heal it without --adapter, which trains its factors")
    if dense.signature.fixed_batch is not None:
        raise HealingError(
            f"the graph takes batches of {dense.signature.fixed_batch} alone, and training cuts batches into smaller "
            "ones; export it with an open first axis"
        )
    if not exact:
        raise HealingError(
            "a graph of few bits, or one that was fused, cannot be trained; compress the ONNX file without --quantize, "
            "--profile and budgets of bytes, and heal that: the run has a graph of eight bits beside the exact one"
        )
    from lowrank.backends.torch.graph import check_operators

    check_operators(cast("OnnxBackend", dense).model)


def check_device(device: str) -> None:
    """Check that a model can be trained on a device.

    Raises:
        HealingError: if there is none of this name.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise HealingError(f"there is no device {device!r} here ({type(error).__name__}); use --device cpu") from None
