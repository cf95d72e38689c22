"""TradeOff: what many budgets are predicted to lose. Its JSON is `tradeoff.json`."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowrank.results.part import Document, Part, rows_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction(Part):
    """A plan's keep ratio, and the relative error that is predicted of it."""

    keep: float
    error: float


@dataclass(frozen=True, kw_only=True)
class TradeOff(Document):
    """The plans of many budgets, by rising keep ratio."""

    file = "tradeoff.json"
    remedy = "delete it and select with --curve again"

    analysis: str
    """The fingerprint of the analysis that the budgets were solved from."""
    of_output: bool
    """Whether errors are those of the model's output; else of the weights."""
    points: list[Prediction] = field(metadata={"read": rows_of(Prediction)})
