"""The README's Python runs, its commands exist, and the documents it points to are there."""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import write_text
from conftest import Outcome

import lowrank

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"(?:^    |`)(lowrank (?:analyze|select|compress|export|evaluate)[^`\n]*)", README, re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_there_is_something_to_check() -> None:
    assert BLOCKS and len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_known(
    command: str, cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each parses: what is missing is the model, not the option."""
    monkeypatch.chdir(tmp_path)
    outcome = cli(*shlex.split(command)[1:])
    assert outcome.code == 1, outcome.err
    assert "there is no" in outcome.err


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_two_commands_of_the_readme(
    cli: Callable[..., Outcome], tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed as they stand there, on a model and a text of those names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bert_folder, tmp_path / "my-model")
    write_text(tmp_path / "sentences.txt", 60)
    block = re.search(r"((?:^    lowrank .*\n)+)", README, re.MULTILINE)
    assert block is not None
    commands = [shlex.split(line) for line in block.group(1).splitlines()]
    assert [command[1] for command in commands] == ["analyze", "compress"]
    for command in commands:
        outcome = cli(*command[1:])
        assert outcome.code == 0, outcome.err
    on_the_device = re.search(r"((?:^    (?!lowrank).*\n)+)", README.partition("**On the device**")[2], re.MULTILINE)
    assert on_the_device is not None
    monkeypatch.chdir(tmp_path / "lowrank-run")
    found: dict[str, Any] = {}
    exec(compile(textwrap.dedent(on_the_device.group(1)), "README.md", "exec"), found)
    assert found["vectors"].shape == (2, lowrank.load(".").config.hidden_size)
