"""The methods that a sweep compares, and the names of its points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank.artifacts import hash_files, hash_json
from lowrank.core.match import nearest
from lowrank.edge.target import Dtype, Target
from lowrank.errors import PatternError
from lowrank.results.sweep import MethodName

DTYPES: tuple[Dtype, ...] = ("float32", "int8", "int4")
"""The types of weights that a sweep and a study try."""
FRONT, ALL = "front", "all"
"""Words for several points to write."""


@dataclass(frozen=True, slots=True)
class Method:
    """One way to make the model smaller."""

    method: MethodName
    keep: float | None = None
    """The share of the targeted weights that is kept."""
    dtype: Dtype = "float32"

    @property
    def name(self) -> str:
        """What it is called everywhere.

        Example:
            >>> Method("lowrank", 0.5, "int8").name
            'lowrank-0.5-int8'
        """
        parts = [self.method, "" if self.keep is None else f"{self.keep:g}"]
        return "-".join(part for part in (*parts, self.dtype if self.dtype != "float32" else "") if part)

    @property
    def target(self) -> Target:
        """What its graph is written for."""
        return Target(dtype=self.dtype)


def families(keeps: Sequence[float], student: bool, healed: bool) -> list[list[Method]]:
    """Everything that is made; those in one list are one model in several types, in 32 bits first."""
    methods = [[Method("dense", None, dtype) for dtype in DTYPES]]
    methods += [[Method("pruned", keep)] for keep in keeps]
    if student:
        methods.append([Method("student", None, dtype) for dtype in DTYPES])
    for keep in keeps:
        methods.append([Method("lowrank", keep, dtype) for dtype in DTYPES])
        if healed:
            methods.append([Method("healed", keep, dtype) for dtype in DTYPES])
    return methods


def check_names(wanted: Sequence[str], kinds: Sequence[Method]) -> None:
    """Refuse a name of no point.

    Raises:
        PatternError: with the nearest one.
    """
    names = [kind.name for kind in kinds]
    for name in wanted:
        if name not in (*names, FRONT, ALL):
            raise PatternError(
                f"--write {name}: there is no such point{nearest(name, names)}; give {FRONT}, {ALL}, or names such as "
                f"{names[-1]}"
            )


def data_of(task: str) -> str | None:
    """What tells the data of a task from other data under the same name."""
    _, _, named = task.partition(":")
    if not named:
        return None
    path = Path(named).expanduser()
    if path.is_dir():
        return hash_json(sorted((str(p), p.stat().st_size) for p in path.rglob("*") if p.is_file()))
    return hash_files([path]) if path.is_file() else None
