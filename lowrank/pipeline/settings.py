"""Settings: which weights are looked at, and on what data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.errors import ArtifactError

NO_DATA, SELF = "none", "self"
"""What `calib` may be in place of a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which weights are looked at, and on what data. The defaults suit any model that reads text."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    targets: Sequence[str] = ("projections",)
    calib: str | None = None
    """A text file or an `.npz` of inputs; None takes the built-in text, for models with a tokenizer; `self` what a
    causal language model says itself; `none` takes no data and leaves everything in the plain metric."""
    column: str | None = None
    samples: int = 4096
    mixed: bool = True
    """Whether built-in text is added to a text file."""

    def to_json(self) -> dict[str, Any]:
        """A mapping that JSON can hold."""
        return {
            "include": list(self.include),
            "exclude": list(self.exclude),
            "targets": list(self.targets),
            "calib": str(Path(self.calib).expanduser().resolve())
            if self.calib and self.calib not in (NO_DATA, SELF)
            else self.calib,
            "column": self.column,
            "samples": self.samples,
            "mixed": self.mixed,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Settings:
        """What `to_json` gave.

        Raises:
            ArtifactError: if it is anything else.
        """
        kinds = {"include": list, "exclude": list, "targets": list, "calib": str, "column": str, "samples": int}
        # Before there was a choice nothing was mixed.
        content = {"mixed": False, **content}
        for name, kind in {**kinds, "mixed": bool}.items():
            value = content.get(name)
            optional = name in ("calib", "column") and value is None
            valid = isinstance(value, kind) and (not isinstance(value, list) or all(isinstance(v, str) for v in value))
            if not optional and not valid:
                raise ArtifactError(f"the analysis has no valid setting {name!r}; run `lowrank analyze MODEL` again")
        return cls(**{name: content[name] for name in (*kinds, "mixed")})
