"""A verb's options are the fields of the dataclasses that it takes, and its help text is short."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer

from lowrank.cli.app import VERBS
from lowrank.cli.verb import EXPERTS, HEALING, Option, Verb


@dataclass(frozen=True, kw_only=True)
class Colours:
    hue: Annotated[Literal["red", "green"], Option("HUE", "Which.", EXPERTS)] = "red"
    depth: Annotated[float | None, Option("N", "How deep.", HEALING, least=1, most=8)] = None
    layers: Annotated[list[int] | None, Option("N,N", "Which.", parse=lambda text: [*map(int, text.split(","))])] = None
    bright: Annotated[bool | None, Option("", "Whether.", names=("--bright/--dark",))] = None


@dataclass(frozen=True, kw_only=True)
class Tools:
    brush: Annotated[int, Option("N", "Which.", EXPERTS)] = 3
    paper: Annotated[int, Option("N", "Which.", EXPERTS)] = 4


given: list[Any] = []


@Verb
def paint(
    name: Annotated[str, Option("", "What.", is_argument=True)],
    colours: Colours,
    tools: Annotated[Tools, "brush"],
    fast: Annotated[bool, Option("", "Soon.")] = False,
) -> None:
    """Paint."""
    given.append((name, colours, tools, fast))


def test_fields_are_options_in_the_order_of_their_panels() -> None:
    keys = [(flag.owner, flag.key) for flag in paint.flags]
    assert keys == [
        ("", "name"),
        ("colours", "layers"),
        ("colours", "bright"),
        ("", "fast"),
        ("colours", "depth"),
        ("colours", "hue"),
        ("tools", "brush"),
        ("run file", "config"),
    ]
    flags = {flag.key: flag for flag in paint.flags}
    assert (flags["bright"].on, flags["bright"].off) == (("--bright",), ("--dark",))
    assert flags["hue"].choices == ("red", "green") and flags["fast"].names == ("--fast",)


def test_values_fill_the_dataclasses() -> None:
    paint(name="x", hue="green", layers="1,2", depth=8)
    name, colours, tools, fast = given.pop()
    assert (name, fast, tools) == ("x", False, Tools())
    assert colours == Colours(hue="green", layers=[1, 2], depth=8)
    paint(name="x", layers=[])
    assert given.pop()[1] == Colours()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 0}, "greater than or equal to 1"),
        ({"depth": float("nan")}, "greater|less"),
        ({"depth": 9}, "less than or equal to 8"),
        ({"config": "c.json"}, "run file"),
    ],
)
def test_what_cannot_be_used_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        paint(name="x", **values)
    assert not given


@pytest.mark.parametrize("verb", [verb for panel in VERBS.values() for verb in panel], ids=lambda verb: verb.name)
def test_no_verb_takes_more_than_eight_things_and_help_is_short(
    verb: Verb, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(inspect.signature(verb.function).parameters) <= 8
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80, raising=False)
    shown = cli(verb.name, "--help")
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80
    # Only one line of an entry has its name.
    nameless = [line.startswith("\u2502") and not line[2:8].strip(" *") for line in lines]
    assert not any(first and second for first, second in pairwise(nameless)), "an entry takes more than two lines"
    assert sum(nameless) <= 6


def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    paths: list[Path] = []

    def draw(*, paper: Annotated[Path, Option("FILE", "Where.")] = Path("paper")) -> None:
        """Draw."""
        paths.append(paper)

    Verb(draw)(paper=Path("~/run"))
    assert paths == [tmp_path / "run"]
    with pytest.raises(typer.BadParameter, match="no such user"):
        Verb(draw)(paper=Path("~nobody-of-this-name/run"))
