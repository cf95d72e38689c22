"""Pages that name what is in the code: nothing is missing, and nothing is there no more."""

from __future__ import annotations

import re
import sys

from blocks import ROOT

import lowrank

sys.path.insert(0, str(ROOT / "tools"))

import command_reference


def test_the_command_reference_is_what_the_program_tells() -> None:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert text == command_reference.reference(), "run `make numbers`"


def test_every_public_name_is_on_the_page_of_python() -> None:
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)", text, re.MULTILINE)) | set(re.findall(r"^`(\w+)`", text, re.MULTILINE))
    assert named == set(lowrank.__all__)


def test_signatures_on_the_page_of_python_have_parameters_that_exist() -> None:
    import inspect
    from typing import get_args

    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    for name, inside in re.findall(r"^\| `(\w+)\(([^`]*)\)`", text, re.MULTILINE):
        function = getattr(lowrank, name)
        known = set(inspect.signature(function).parameters)
        if "options" in known:
            annotation, names = function.__annotations__["options"], inspect.unwrap(function).__globals__
            (options,) = get_args(eval(annotation, names))
            known |= set(options.__annotations__)
        for parameter in re.findall(r"(\w+)(?:=\w+)?(?:, |$)", inside.replace("*, ", "").replace("...", "")):
            assert parameter in known, f"{name}({parameter})"
