"""Memory that this process has, and that it can still take."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from lowrank.machine import cores

CONTROL_GROUP = Path("/sys/fs/cgroup")


BATCH_BYTES = 4096 * 16
"""What a batch takes for each channel of the widest layer, roughly: its tokens, and four copies of each number."""


def available_memory() -> int:
    """Bytes that this process can still take: what the machine has left, or what a limit leaves of it.

    Limits are those of a control group (containers) and of the process itself.
    """
    return max(0, min(psutil.virtual_memory().available, *_left_by_limits()))


def used_memory() -> int:
    """Bytes that this process holds in memory."""
    return int(psutil.Process().memory_info().rss)


def _left_by_limits() -> list[int]:
    limits = [psutil.virtual_memory().total]
    try:
        most = (CONTROL_GROUP / "memory.max").read_text().strip()
        if most != "max":
            facts = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
            # Pages of files that were read can be had back.
            used = int((CONTROL_GROUP / "memory.current").read_text()) - int(facts.get("inactive_file", 0))
            limits.append(int(most) - used)
    except (OSError, ValueError):
        pass
    if os.name == "posix":
        import resource

        size = psutil.Process().memory_info()
        for kind, used in ((resource.RLIMIT_AS, size.vms), (resource.RLIMIT_DATA, getattr(size, "data", 0))):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                limits.append(soft - used)
    return limits


def batches_at_once(widest: int, left: int | None = None) -> int:
    """How many batches can be run at once: one for each core, as far as there is memory for each.

    Args:
        widest: the largest number of channels of a layer, such as the vocabulary of a language model's head.
        left: bytes that they may take; by default all that there are.
    """
    left = available_memory() if left is None else left
    return max(1, min(cores(), left // (BATCH_BYTES * max(widest, 1))))
