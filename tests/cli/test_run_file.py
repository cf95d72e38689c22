"""`--config run.yaml` equals flags, and what is wrong in it is said with its line; completion in a real shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import read, saved_state

from lowrank.cli.app import app
from lowrank.cli.run_file import RunFileError, expanded, read_run_file


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_equals_flags_and_the_command_line_wins(tmp_path: Path, cli: Callable[..., Any]) -> None:
    model, run = saved_state(tmp_path / "m.pt"), tmp_path / "run"
    path = written(
        tmp_path,
        f"model: {model}\nbudget: 0.2   # much\ninclude: ['layers.0.*', layers.1.up.weight]\n"
        "timing: false\nfold: no\nof: bytes\n",
    )
    made = cli("compress", "--budget", "0.6", "--config", path, "-o", run)
    assert made.code == 0, made.err
    report = read(run / "report.json")
    assert report["budget"]["kind"] == "bytes" and report["budget"]["limit"] == 0.6
    assert report["targets"]["params_before"] == 3 * 16 * 40
    command = report["provenance"]["command"]
    assert command[1:3] == ["compress", str(model)] and "--no-timing" in command
    assert "--include=layers.0.*" in command and str(path) not in command
    # What is recorded does the same without the file.
    again = cli(*[str(tmp_path / "again") if part == str(run) else part for part in command[1:]])
    assert again.code == 0 and read(tmp_path / "again" / "plan.json")["groups"] == read(run / "plan.json")["groups"]


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda c: c.name)
def test_every_option_of_every_command_can_be_in_a_file(command: Any, tmp_path: Path) -> None:
    flags = command.callback.flags
    samples: dict[Any, Any] = {}
    for flag in flags:
        number = flag.kind in (int, float)
        samples[flag.key] = True if flag.is_switch else flag.choices[0] if flag.choices else 20 if number else "word"
    text = "".join(f"{key.replace('-', '_')}: {str(value).lower()}\n" for key, value in samples.items())
    name = command.name
    values = read_run_file(written(tmp_path, text), flags, name)
    assert set(values) == {flag.name for flag in flags}
    tokens = expanded([name, "--config", str(tmp_path / "run.yaml")], app)
    assert len(tokens) == 1 + len(flags)
    # The tokens are what the command's own parser takes.
    from typer.main import get_command

    parser: Any = get_command(app)
    context = parser.commands[name].make_context(name, tokens[1:], resilient_parsing=True)
    assert {flag.name for flag in flags} <= set(context.params)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budget: 0.5\n\nbudgt: 0.5", "line 3: compress has no option 'budgt'; did you mean budget"),
        ("zzz: red", "it takes model, budget"),
        ("budget: lots", "line 1: budget cannot be 'lots'"),
        ("multiple: 0", "greater than or equal to 1"),
        ("multiple: 1.5", "fractional"),
        ("samples: true", "valid integer"),
        ("quantize: int9", "'int8'"),
        ("timing: 3", "boolean"),
        ("quantize: no", "cannot be 'no'"),
        ("budget: 1\nbudget: 2", "line 2: budget is given twice, first in line 1"),
        ("keep_lora: true\nkeep-lora: true", "given twice"),
        ("model:\n  path: x", "a word or a number, or a list"),
        ("include: [[a]]", "a word or a number, or a list"),
        ("- budget", "one a line"),
        ("budget: [", "line 1: this is no YAML"),
        ("budget: !!python/object:os.system x", "no YAML"),
        ("config: other.yml", "cannot name another"),
        ("budget: 1\n[a]: 2", "line 2: a list is no name"),
        ("<<: &a [x]", "has no option"),
        ("[" * 3000, "list of them"),
        ("#" * 70_000, "too many"),
        ("\x00", "no text"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=said):
        expanded(["compress", "--config", str(written(tmp_path, text))], app)


def test_other_files_and_commands_are_told_apart(tmp_path: Path, cli: Callable[..., Any]) -> None:
    path = written(tmp_path, "budget: 0.5\n")
    assert expanded(["compress", "--config", "config.json"], app) == ["compress", "--config", "config.json"]
    assert expanded(["--config", str(path)], app) == ["--config", str(path)]
    with pytest.raises(RunFileError, match="one run file"):
        expanded(["compress", f"--config={path}", "--config", str(path)], app)
    missing = cli("compress", "--config", tmp_path / "no.yaml")
    assert missing.code == 1 and "No such file" in missing.err
    refused = cli("select", "--config", "config.json")
    assert refused.code == 2 and "run file" in refused.err
    assert "--config" in cli("heal", "--help").out
    path.write_bytes(b"\xff\xfe")
    assert "UTF-8" in cli("compress", "--config", path).err


def test_completion_in_bash(tmp_path: Path) -> None:
    command = tmp_path / "lowrank"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m lowrank "$@"\n')
    command.chmod(0o755)
    script = """
    eval "$(lowrank --show-completion bash)"
    try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _lowrank_completion lowrank; echo "$* -> ${COMPREPLY[*]}"; }
    try lowrank comp
    try lowrank compress --quantize int
    try lowrank compress --structures two_factor,p
    try lowrank analyze --targets head,e
    try lowrank analyze mod
    complete -p lowrank
    """
    place = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    done = subprocess.run(["bash", "-c", script], env=place, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "lowrank comp -> compress",
        "lowrank compress --quantize int -> int8 int4 int3 int2",
        "lowrank compress --structures two_factor,p -> two_factor,pivoted two_factor,product",
        "lowrank analyze --targets head,e -> head,embeddings",
        # Nothing of its own, so the shell completes names of files and folders.
        "lowrank analyze mod -> ",
        "complete -o default -F _lowrank_completion lowrank",
    ]
