"""What this machine is called."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, or what is known of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, platform.processor() or platform.machine())
