"""The command line: every verb in its panel, and what becomes of errors."""

from __future__ import annotations

import atexit
import gc
import sys
from typing import Annotated

import typer

from lowrank.cli.analyze import analyze
from lowrank.cli.bench import bench
from lowrank.cli.compress import compress
from lowrank.cli.demo import demo
from lowrank.cli.doctor import doctor
from lowrank.cli.evaluate import evaluate
from lowrank.cli.export import export
from lowrank.cli.heal import heal
from lowrank.cli.inspect import inspect
from lowrank.cli.run_file import expanded
from lowrank.cli.select import select
from lowrank.cli.sweep import sweep
from lowrank.cli.truncate import truncate
from lowrank.cli.tune import tune
from lowrank.cli.vocabulary import vocabulary
from lowrank.errors import LowRankError
from lowrank.interrupts import remember_interrupts, was_interrupted
from lowrank.report.terminal.terminal import complain
from lowrank.version import __version__

OBJECTS = 10_000
"""Made since the last search for garbage, before the next one."""
INTERRUPTED = 130
"""What typer exits with on Ctrl-C, as shells do."""

VERBS = {
    "Make a model smaller": (analyze, compress, heal, truncate, vocabulary),
    "Decide": (select, sweep, tune),
    "Look": (evaluate, demo, inspect, doctor),
    "Ship": (export, bench),
}
"""The subcommands, by the panel of the help text that they stand in."""

app = typer.Typer(
    name="lowrank",
    help="Make a trained transformer smaller and faster on a CPU: analyze MODEL, then compress --budget 0.3.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lowrank {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _panel, _verbs in VERBS.items():
    for _verb in _verbs:
        app.command(_verb.name, rich_help_panel=_panel)(_verb)


def main() -> None:
    """The console script: errors become one sentence and exit code 1."""
    remember_interrupts()
    # Libraries make objects by the million that live until the end: to look for garbage among them again and again,
    # and once more at the end, takes seconds.
    gc.set_threshold(OBJECTS)
    atexit.register(gc.freeze)
    try:
        sys.argv[1:] = expanded(sys.argv[1:], app)
        app(prog_name="lowrank")
    except (Exception, SystemExit) as ending:
        code = ending.code if isinstance(ending, SystemExit) else 1
        if code == INTERRUPTED or (code and was_interrupted()):
            # An interrupted call into other code may come back as an error of that code.
            complain("interrupted; earlier results are as they were")
            code = INTERRUPTED
        elif isinstance(ending, LowRankError):
            complain(str(ending))
        elif isinstance(ending, OSError):
            complain(
                f"{ending.filename or 'a file'}: {ending.strerror or ending}; choose another path, or make it readable"
            )
        elif isinstance(ending, RuntimeError) and "home directory" in str(ending):
            complain("a path begins with ~ and a user that there is not; write the folder out")
        elif not isinstance(ending, SystemExit):
            raise
        sys.exit(code)
