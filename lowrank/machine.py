"""This machine's processor: its name, and how many of its cores are there for this process."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path


def processor() -> str:
    """The processor's name; its architecture if the name is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, platform.processor() or platform.machine())


@cache
def cores() -> int:
    """How many cores this process may use: those that it is bound to, or fewer if OMP_NUM_THREADS says so at first."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, min(bound, int(asked))) if asked.isdecimal() and int(asked) else bound
