"""Latency of ONNX files side by side in one process, in turn, so that a busy machine disturbs all alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from lowrank.backends.inputs import Signature
from lowrank.backends.ort_session import typed
from lowrank.evaluate.graph import open_graph

WARMUP = 3


def measure_latency(
    files: Mapping[str, Path],
    signature: Signature,
    batch: int = 1,
    sequence: int = 128,
    threads: int = 1,
    rounds: int = 30,
) -> dict[str, float]:
    """Median milliseconds of one run of each file, the files taking turns in every round.

    Raises:
        ExportError: if ONNX Runtime cannot load one.
    """
    sessions = {name: open_graph(path, threads) for name, path in files.items()}
    feed = signature.example(batch, min(sequence, signature.max_sequence))
    feeds = {name: typed(session, feed) for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in files}
    for number in range(WARMUP + rounds):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feeds[name])
            if number >= WARMUP:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: median(values) for name, values in times.items()}
