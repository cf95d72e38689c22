"""What an adapter is asked to be; nothing heavy is imported for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Initial = Literal["discarded", "zero"]
"""What an adapter begins as: the best of what truncation left out, if held-out samples find that better, or nothing."""

Fold = Literal["no", "exact", "rank"]
"""What becomes of a trained adapter: it stays one; or it is folded into the factors, whose ranks grow, or are cut back
to what they were."""


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Train residuals of this rank on frozen factors, in place of the factors."""

    rank: int
    initial: Initial = "discarded"
    fold: Fold = "no"
    """Layers that share a factor with others have no adapter if it is to be folded."""
