"""Many damaged files, in a process of their own: it may hang, run out of memory or crash, and that is told too."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .attempt import attempt, damaged, prepare
from .readers import Reader

BATCH = 5000
"""Inputs in one process, so that what libraries remember of each does not add up."""
ROOM = 4 << 30
"""Address space that a process may take beyond what it begins with."""
GROWTH_MIB = 512
"""More resident memory than that for an input of kilobytes is a bomb."""
NUMBER, RESULTS, REFUSALS, SECONDS, PEAK = range(5)


@dataclass
class Tally:
    """What came of a reader's inputs."""

    inputs: int = 0
    results: int = 0
    refusals: int = 0
    seconds: float = 0.0
    """Of the slowest."""
    peak: float = 0.0
    """The most MiB that one input took."""
    faults: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Numbers of inputs by what was wrong."""


def hunt(reader: Reader, inputs: int, seed: int, seconds_each: float, most_seconds: float = float("inf")) -> Tally:
    """Read inputs 0 to `inputs`, or as many as there is time for."""
    tally = Tally()
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        prepare(reader, Path(name))
        until = time.monotonic() + most_seconds
        context = multiprocessing.get_context("fork")
        while tally.inputs < inputs and time.monotonic() < until:
            state = context.RawArray("d", 5)
            told = context.SimpleQueue()
            stop = min(tally.inputs + BATCH, inputs)
            span = range(tally.inputs, stop)
            worker = context.Process(
                target=_work, args=(reader, Path(name), span, seed, seconds_each, until, state, told)
            )
            worker.start()
            while worker.is_alive() or not told.empty():
                if told.empty():
                    worker.join(0.2)
                else:
                    number, what = told.get()
                    tally.faults.setdefault(what, []).append(number)
            if worker.exitcode:
                what = "hang" if worker.exitcode == -signal.SIGALRM else f"crash: exit status {worker.exitcode}"
                tally.faults.setdefault(what, []).append(int(state[NUMBER]))
            _add(tally, state, bool(worker.exitcode))
    return tally


def _add(tally: Tally, state: Any, died: bool) -> None:
    tally.inputs = int(state[NUMBER]) + died
    tally.results += int(state[RESULTS])
    tally.refusals += int(state[REFUSALS])
    tally.seconds = max(tally.seconds, state[SECONDS])
    tally.peak = max(tally.peak, state[PEAK])


def _work(
    reader: Reader, folder: Path, span: range, seed: int, seconds: float, until: float, state: Any, told: Any
) -> None:
    state[NUMBER] = span.start
    _limit_memory()
    # Nothing that a library prints of a bad file is of interest.
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.stdin = sys.stdout = sys.stderr = open(os.devnull, "r+")  # noqa: PTH123, SIM115
    # Unhandled, so that it ends a loop in compiled code too.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in span:
        state[NUMBER] = number
        if time.monotonic() > until:
            return
        content = damaged(reader, seed, number)
        before, begun = _resident(), time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, seconds)
        outcome = attempt(reader, folder, content)
        signal.setitimer(signal.ITIMER_REAL, 0)
        taken, grown = time.perf_counter() - begun, _resident() - before
        state[SECONDS], state[PEAK] = max(state[SECONDS], taken), max(state[PEAK], grown)
        state[RESULTS] += outcome == "result"
        state[REFUSALS] += outcome == "refusal"
        if grown > GROWTH_MIB:
            outcome = f"memory: {GROWTH_MIB} MiB and more"
        if outcome not in ("result", "refusal"):
            told.put((number, outcome))
    state[NUMBER] = span.stop


def _resident() -> float:
    """The most MiB that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
