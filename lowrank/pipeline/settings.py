"""Settings: which weights are looked at, and on what data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.core.weight import Role

NO_DATA = "none"
ROLES: dict[str, tuple[Role, ...]] = {
    "projections": ("projection",),
    "head": ("head",),
    "all": ("projection", "head"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which weights are looked at, and on what data. The defaults suit any model that reads text."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    targets: Sequence[str] = ("projections",)
    calib: str | None = None
    """A text file or an `.npz` of inputs; None takes text that ships with Python, for models with a tokenizer; `none`
    takes no data and leaves everything in the plain metric."""
    column: str | None = None
    samples: int = 4096

    def to_json(self) -> dict[str, Any]:
        """A mapping that JSON can hold."""
        return {
            "include": list(self.include),
            "exclude": list(self.exclude),
            "targets": list(self.targets),
            "calib": str(Path(self.calib).resolve()) if self.calib and self.calib != NO_DATA else self.calib,
            "column": self.column,
            "samples": self.samples,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Settings:
        """What `to_json` gave."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})
