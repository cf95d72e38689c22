"""A measured table: a JSON file that benches write and pages are rendered from (`render_numbers.py`)."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lowrank.machine import cores

Cell = str | float | None
PACKAGES = ("lowrank", "numpy", "scipy", "torch", "transformers", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Table:
    """Rows of raw numbers, and how each column is printed.

    `columns` maps a name to a format specification and, after a space, a unit: ".2f", "g", ".0f us"; `figure` is four
    digits below a hundred and none from there on; the empty one is text.
    """

    columns: Mapping[str, str]
    rows: Sequence[Sequence[Cell]]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __getitem__(self, key: tuple[Cell, ...]) -> Any:
        """`table[first cells of a row ..., column]`: the number there."""
        *label, column = key
        found = [row for row in self.rows if list(row[: len(label)]) == label]
        if len(found) != 1:
            raise KeyError(f"{len(found)} rows begin with {label}; one must")
        return found[0][list(self.columns).index(str(column))]

    def text(self) -> str:
        """As Markdown."""
        lines = [list(self.columns), ["---"] * len(self.columns)]
        lines += [[shown(x, f) for x, f in zip(row, self.columns.values(), strict=True)] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: Cell, form: str) -> str:
    """A cell as it is printed."""
    if value is None:
        return ""
    spec, _, unit = form.partition(" ")
    if spec == "figure":
        spec = ".4f" if float(value) < 100 else ".0f"
    return f"{format(value, spec)} {unit}".strip()


def machine() -> str:
    """What the processor can do, as far as it decides speed; no names."""
    flags: set[str] = set()
    if (told := Path("/proc/cpuinfo")).exists():
        flags = {w for line in told.read_text().splitlines() if line.startswith("flags") for w in line.split()}
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "VNNI", "amx_int8": "AMX"}
    able = dict.fromkeys(name for flag, name in known.items() if flag in flags)
    count = cores()
    return f"{count} core{'s' if count > 1 else ''}" + (f" with {', '.join(able)}" if able else "")


def publish(table: Table, folder: Path, name: str) -> str:
    """Write NAME.md and NAME.json, with the command, the machine, the day and the versions; give back the former."""
    folder.mkdir(parents=True, exist_ok=True)
    text = table.text()
    # Of a path only its last part: where somebody keeps their data is nobody's business.
    words = [Path(word).name if os.sep in word else word for word in sys.argv[1:]]
    facts = {
        "command": shlex.join(["python", f"tools/{Path(sys.argv[0]).name}", *words]),
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (folder / f"{name}.json").write_text(as_json(Table(table.columns, table.rows, facts)), encoding="utf-8")
    return text


def measured_before(folder: Path, name: str, columns: Mapping[str, str]) -> list[list[Cell]]:
    """The rows of a bench that was stopped, or that measured some rows alone; none if the columns were others."""
    path = folder / f"{name}.json"
    table = read(path) if path.is_file() else None
    if not isinstance(table, Table) or list(table.columns) != list(columns):
        return []
    return [list(row) for row in table.rows]


def as_json(table: Table) -> str:
    """One row a line, so that a diff shows what changed."""
    head = json.dumps({**table.facts, "columns": table.columns}, ensure_ascii=False, indent=1)[:-2]
    rows = ",\n".join(f"  {json.dumps(list(row), ensure_ascii=False)}" for row in table.rows)
    return f'{head},\n "rows": [\n{rows}\n ]\n}}\n'


def read(path: Path) -> Any:
    """A table, or the content of another JSON file, such as a report."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if "rows" not in content:
        return content
    columns, rows = content.pop("columns"), content.pop("rows")
    return Table(columns, rows, content)
