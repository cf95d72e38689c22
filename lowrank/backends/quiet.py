"""Silencing other libraries; their errors still come as exceptions."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def no_logs(level: int) -> Iterator[None]:
    """Nothing up to a level is logged inside the block."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """No prints, logs and warnings: exporters and converters tell of every step."""
    with no_logs(logging.ERROR), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
