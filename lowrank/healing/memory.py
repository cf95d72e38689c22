"""Telling that memory has run out from everything else that may go wrong."""

from __future__ import annotations

import torch


def is_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of a device, did not hold what was asked for."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
