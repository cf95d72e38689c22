"""The command line: one subcommand a verb. Parse, call, print."""

from lowrank.cli.app import main

__all__ = ["main"]
