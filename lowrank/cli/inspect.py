"""The command line's verbs for what is there: inspect and doctor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lowrank.cli.options import Json
from lowrank.report.terminal.terminal import complain, print_json, say

MOST = 16
"""Rows of a list that are printed; JSON has all."""


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A model, a result, a table, samples; a file or folder.")
    ],
    as_json: Json = False,
) -> None:
    """Say what a file or folder is, what it holds, and what can be done with it. Nothing in it is run."""
    from lowrank.inspection import inspect as look

    found = look(path.expanduser())
    if as_json:
        print_json({"path": str(path), **found.to_json()})
        return
    say(f"{path}: {found.what}")
    for line in _lines(found.facts, "  "):
        say(line)
    for step in found.next:
        say(f"Next: {step}")


def _lines(facts: Mapping[str, Any], margin: str) -> list[str]:
    """Facts as lines, shorter than JSON."""
    found: list[str] = []
    for key, value in facts.items():
        if value is None or value == [] or value == {} or value == "":
            continue
        label = f"{margin}{key}"
        if isinstance(value, Mapping):
            flat = all(not isinstance(each, list | Mapping) for each in value.values())
            short = ", ".join(f"{k} {_short(v)}" for k, v in list(value.items())[:MOST])
            if flat and len(short) <= 140:
                found.append(f"{label}: {short}" + (f", {len(value) - MOST} more" if len(value) > MOST else ""))
            else:
                found += [f"{label}:", *_lines(value, margin + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            found.append(f"{label}:")
            found += [f"{margin}  {'  '.join(_short(v) for v in row.values())}" for row in value[:MOST]]
            found += [f"{margin}  and {len(value) - MOST} more; --json lists all"] if len(value) > MOST else []
        else:
            found.append(f"{label}: {_short(value)}")
    return found


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


def doctor(as_json: Json = False) -> None:
    """Say what is installed, what is missing and which line installs it, and try the core once."""
    from lowrank.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
    else:
        for title, facts in found.items():
            if isinstance(facts, Mapping):
                say(f"{title}:")
                for line in _lines(facts, "  "):
                    say(line)
        for line in found["advice"]:
            say(f"Note: {line}")
    if not found["works"]:
        complain(f"the core does not work here: {found['why']}")
        raise typer.Exit(1)
