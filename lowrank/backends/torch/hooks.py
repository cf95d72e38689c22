"""Hooks on the layers of a module, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle


@contextmanager
def removed_after(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of the block, however it ends."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a layer reads, from the arguments that a forward hook is shown."""
    return args[0] if args else next(iter(kwargs.values()))


class Enough(Exception):
    """Raised by a hook to end a forward pass of which all that was wanted has been seen."""
