"""Progress in a log, which is no terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lowrank.report.terminal.terminal import logged


def lines_of(seconds: float, total: int, label: object = "calibrating") -> list[str]:
    """The lines of a stage each of whose items takes so many seconds."""
    now, lines = [100.0], list[str]()

    def items() -> Iterator[int]:
        for item in range(total):
            now[0] += seconds
            yield item

    taken = list(logged(items(), label, total, lines.append, lambda: now[0]))  # type: ignore[arg-type]
    assert taken == list(range(total))
    return lines


def test_a_short_stage_has_one_line() -> None:
    assert lines_of(0.1, 50) == ["calibrating (50)"]


def test_a_long_stage_says_how_far_it_is_and_what_is_left() -> None:
    assert lines_of(4, 10) == [
        "calibrating (10)",
        "calibrating: 30 %, about 28 s left",
        "calibrating: 60 %, about 16 s left",
        "calibrating: 90 %, about 4 s left",
    ]


@pytest.mark.parametrize(("seconds", "left"), [(60, "2 min"), (3600, "2.0 h")])
def test_long_times_are_said_in_their_unit(seconds: float, left: str) -> None:
    assert lines_of(seconds, 3)[1] == f"calibrating: 33 %, about {left} left"


def test_more_items_than_were_foretold_are_no_more_than_all() -> None:
    lines = list[str]()
    clock = iter(range(0, 10_000, 20))
    assert len(list(logged(range(5), "x", 2, lines.append, lambda: float(next(clock))))) == 5
    assert lines == ["x (2)", "x: 50 %, about 20 s left"]


def test_a_label_that_changes_is_told_when_it_does() -> None:
    names = iter("aabbb")
    shown = next(names)

    def label() -> str:
        nonlocal shown
        before, shown = shown, next(names, shown)
        return before

    assert lines_of(1, 4, label) == ["a", "b"]
