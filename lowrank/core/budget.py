"""Budget: what a result may cost, or how far it may differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

from lowrank.core.cost import UNITS, Unit
from lowrank.errors import InfeasibleBudget

Kind = Unit | Literal["error", "latency", "milliseconds", "speedup", "size"]
NAMES: dict[str, str] = {
    "params": "parameters",
    "bytes": "bytes",
    "macs": "multiply-adds",
    "latency": "time",
    "speedup": "time",
    "size": "bytes",
}
TIMED = ("latency", "milliseconds", "speedup")
"""Kinds that are spent on time."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A share of what the targeted weights cost to keep, or of the time that the model takes; how many times as fast it
    is to be; bytes of its file; or an error that each weight may have.

    Example:
        >>> Budget.params(0.3)
        Budget(kind='params', limit=0.3)
    """

    kind: Kind
    limit: float
    file_bytes: float | None = None
    """Beside a speed: how many bytes the file may have, or, up to 1, which share of the original's."""

    def __post_init__(self) -> None:
        if self.file_bytes is not None:
            if self.kind != "speedup":
                raise InfeasibleBudget(f"a size beside {self.kind} is not known; give it beside a speedup, or alone")
            Budget("size", self.file_bytes)
        if self.kind == "speedup":
            if not (math.isfinite(self.limit) and self.limit >= 1):
                raise InfeasibleBudget(
                    f"a speedup of {self.limit:g}: it is how many times as fast as the dense model the result is to "
                    "be, so it must be at least 1; 4 takes a quarter of the time"
                )
            return
        if self.kind == "milliseconds":
            if not (math.isfinite(self.limit) and self.limit > 0):
                raise InfeasibleBudget(
                    f"{self.limit:g} ms is not a time that a model can take; give a number above 0, or a share"
                )
            return
        if self.kind == "size":
            if not (math.isfinite(self.limit) and self.limit > 0):
                raise InfeasibleBudget(
                    f"{self.limit:g} bytes is not a size of a file; give one such as 8MB, or a share"
                )
            return
        if self.kind != "error" and not (math.isfinite(self.limit) and 0 < self.limit <= 1):
            raise InfeasibleBudget(
                f"a budget of {self.limit:g}: it is the share of the targeted weights' {NAMES[self.kind]} to keep, "
                "so it must be above 0 and at most 1; 0.5 keeps half"
            )
        if self.kind == "error" and not (math.isfinite(self.limit) and 0 <= self.limit < 1):
            raise InfeasibleBudget(
                f"an error of {self.limit:g}: it is the relative output error that each weight may have, "
                "so it must be at least 0 and below 1; try 0.05"
            )

    @classmethod
    def from_json(cls, content: object) -> Budget | None:
        """The budget in a plan.json; None if the plan has none.

        Raises:
            InfeasibleBudget: if it is no budget.
        """
        if content is None:
            return None
        entry = cast("dict[str, object]", content) if isinstance(content, dict) else {}
        kind, limit = entry.get("kind"), entry.get("limit")
        size = entry.get("size")
        if (
            kind not in (*UNITS, "error", "latency", "speedup", "size")
            or not isinstance(limit, int | float)
            or not isinstance(size, int | float | None)
        ):
            raise InfeasibleBudget(
                f"the plan's budget {content!r} must have a kind ({', '.join(UNITS)}, latency, speedup, size or error) "
                "and a limit"
            )
        return cls(cast("Kind", kind), float(limit), None if size is None else float(size))

    def to_json(self) -> dict[str, object]:
        """A mapping that JSON can hold, for `from_json`."""
        return {
            "kind": self.kind,
            "limit": self.limit,
            **({} if self.file_bytes is None else {"size": self.file_bytes}),
        }

    @classmethod
    def params(cls, keep: float) -> Budget:
        """Keep at most this share of the targeted weights' parameters (the keep ratio)."""
        return cls("params", float(keep))

    @classmethod
    def latency(cls, share: float) -> Budget:
        """Take at most this share of the dense model's time, as predicted from `Timings`."""
        return cls("latency", float(share))

    @classmethod
    def speedup(cls, times: float, size: float | None = None) -> Budget:
        """So many times as fast as the dense model in float32, as predicted from `Timings`, types chosen, too.

        Args:
            times: at least 1.
            size: bytes that the file may have beside that, or a share of the original's; None for any.
        """
        return cls("speedup", float(times), size)

    @classmethod
    def size(cls, limit: float) -> Budget:
        """A model file of at most so many bytes, or, up to 1, of this share of the original's."""
        return cls("size", float(limit))

    @property
    def most_bytes(self) -> float | None:
        """Bytes that the file may have; None if it may have any number."""
        return self.limit if self.kind == "size" else self.file_bytes

    @property
    def time_share(self) -> float:
        """The share of the dense model's time that a budget of time leaves."""
        return 1 / self.limit if self.kind == "speedup" else self.limit

    def of_original(self, nbytes: int) -> Budget:
        """A share of a size as bytes; any other budget as it is."""
        most = self.most_bytes
        if most is None or most > 1:
            return self
        count = float(int(most * nbytes))
        return Budget.size(count) if self.kind == "size" else Budget.speedup(self.limit, count)

    def of_whole(self, milliseconds: float | None) -> Budget:
        """A budget of milliseconds as the share of what the whole dense model takes; any other as it is.

        Raises:
            InfeasibleBudget: if that is not known.
        """
        if self.kind != "milliseconds":
            return self
        if milliseconds is None:
            raise InfeasibleBudget(
                "the table does not say what the whole dense model takes, so milliseconds cannot be a budget: give a "
                "share such as 0.5, or measure with the dense model: python measure.py table.json dense.onnx"
            )
        return Budget.latency(min(self.limit / milliseconds, 1.0))

    @classmethod
    def error(cls, relative: float) -> Budget:
        """Let each targeted weight's output differ by at most this much, relative to its norm."""
        return cls("error", float(relative))
