"""Every reader on damaged files, a few of those that `python -m tools.fuzz` reads by the hundred thousand."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tools.fuzz.attempt import attempt, damaged, prepare
from tools.fuzz.hunt import hunt
from tools.fuzz.readers import READERS, Reader

SEED = 1
SECONDS = 5


class Hang(BaseException):
    """Nothing that a reader catches."""


@pytest.fixture
def awake() -> Iterator[None]:
    def wake(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, wake)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_damaged_file_gives_a_result_or_a_refusal(reader: Reader, tmp_path: Path, awake: None) -> None:
    prepare(reader, tmp_path)
    outcomes: set[str] = set()
    for number in range(15 if reader.slow else 120):
        content = damaged(reader, SEED, number)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        outcome = attempt(reader, tmp_path, content)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert outcome in ("result", "refusal"), f"{reader.name}, input {number} of seed {SEED}: {outcome}"
        outcomes.add(outcome)
    assert "refusal" in outcomes


def _sleep(folder: Path) -> None:
    time.sleep(60)


def _crash(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _eat(folder: Path) -> None:
    assert len(bytes(range(256)) * (3 << 20)) > 0


def _trip(folder: Path) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("read", "fault"), [(_sleep, "hang"), (_crash, "crash"), (_eat, "memory"), (_trip, "ZeroDivisionError")]
)
def test_the_hunt_sees_what_it_hunts(read: Any, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.fuzz.hunt.prepare", lambda reader, folder: None)
    reader = replace(next(r for r in READERS if r.name == "txt"), file="t.txt", read=read)
    # Only the one that hangs is cut short: on a busy machine others take seconds to begin.
    tally = hunt(reader, 2, SEED, seconds_each=1.0 if fault == "hang" else 60.0)
    assert tally.inputs == 2 and len(tally.faults) == 1
    assert next(iter(tally.faults)).startswith(fault)
    # A process has its peak of memory once.
    assert next(iter(tally.faults.values()))[0] == 0
