"""`lowrank doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from lowrank.cli.inspect import show_facts
from lowrank.cli.options import OutputOptions
from lowrank.cli.verb import Verb
from lowrank.report.terminal.terminal import complain, print_json, say


@Verb
def doctor(result: Annotated[OutputOptions, "as_json"]) -> None:
    """Say what is installed and what is missing, and try the core.

    For what is missing it says which line installs it.
    """
    from lowrank.doctor import examine

    installed = examine()
    if result.as_json:
        print_json(installed)
    else:
        for title, facts in installed.items():
            if isinstance(facts, Mapping):
                say(f"{title}:")
                show_facts(facts)
        for line in installed["advice"]:
            say(f"Note: {line}")
    if not installed["works"]:
        complain(f"the core does not work here: {installed['why']}")
        raise typer.Exit(1)
