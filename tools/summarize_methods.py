"""The tables of `bench_methods.py` with one row for each method: its first and its last column at every keep ratio.

python tools/summarize_methods.py bench/methods-minilm.md [...]
"""

from __future__ import annotations

import sys
from pathlib import Path


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def summary(text: str) -> str:
    head, _, dense, *rows = (cells(line) for line in text.splitlines() if line.startswith("|"))
    first, last, timed = 2, len(head) - 3, len(head) - 2
    methods: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        methods.setdefault(row[0], {})[row[1]] = row
    keeps = list(dict.fromkeys(row[1] for row in rows))
    titles = [f"{head[first]} at {k}" for k in keeps] + [f"{head[last]} at {k}" for k in keeps] + ["seconds", "peak MB"]
    lines = [f"| {head[0]} | {' | '.join(titles)} |", f"| --- |{' --- |' * len(titles)}"]
    lines.append(f"| dense | {' | '.join([dense[first]] * len(keeps) + [dense[last]] * len(keeps))} | | |")
    for name, found in methods.items():
        figures = [found[k][column] if k in found else "-" for column in (first, last) for k in keeps]
        # Of the smallest model, which takes the longest.
        final = list(found.values())[-1]
        lines.append(f"| {name} | {' | '.join([*figures, final[timed], final[timed + 1]])} |")
    return "\n".join(lines)


def main() -> None:
    print("\n\n".join(summary(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:]))


if __name__ == "__main__":
    main()
