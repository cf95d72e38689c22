"""`lowrank inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from lowrank.cli.options import OutputOptions
from lowrank.cli.verb import Option, Verb
from lowrank.report.terminal.terminal import print_json, say

MOST = 16
"""Rows of a list that are printed; JSON has all."""


@Verb
def inspect(
    path: Annotated[Path, Option("FILE", "A model, result, table, samples; a file or folder.", is_argument=True)],
    result: Annotated[OutputOptions, "as_json"],
) -> None:
    """Say what a file or folder is, and what can be done with it.

    Nothing in it is run.
    """
    from lowrank.inspection import inspect as look

    contents = look(path)
    if result.as_json:
        print_json({"path": str(path), **contents.to_json()})
        return
    say(f"{path}: {contents.what}")
    show_facts(contents.facts)
    for step in contents.next:
        say(f"Next: {step}")


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print facts, shorter than JSON."""
    for line in _lines(facts, "  "):
        say(line)


def _lines(facts: Mapping[str, Any], margin: str) -> list[str]:
    """Facts as indented lines."""
    lines: list[str] = []
    for key, value in facts.items():
        if value is None or value == [] or value == {} or value == "":
            continue
        label = f"{margin}{key}"
        if isinstance(value, Mapping):
            flat = all(not isinstance(each, list | Mapping) for each in value.values())
            short = ", ".join(f"{k} {_short(v)}" for k, v in list(value.items())[:MOST])
            if flat and len(short) <= 140:
                lines.append(f"{label}: {short}" + (f", {len(value) - MOST} more" if len(value) > MOST else ""))
            else:
                lines += [f"{label}:", *_lines(value, margin + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines.append(f"{label}:")
            lines += [f"{margin}  {'  '.join(_short(v) for v in row.values())}" for row in value[:MOST]]
            lines += [f"{margin}  and {len(value) - MOST} more; --json lists all"] if len(value) > MOST else []
        else:
            lines.append(f"{label}: {_short(value)}")
    return lines


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and all(isinstance(each, int | str) and not isinstance(each, bool) for each in value):
        sizes = all(isinstance(each, int) for each in value) or any(isinstance(each, int) for each in value)
        return (" x " if sizes else ", ").join(map(str, value))
    return str(value)
