"""Building a module from `package.module:factory`, as `--arch` names it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from torch import nn

from lowrank.errors import UnsupportedModel, first_line


def build_arch(arch: str) -> nn.Module:
    """The dense module that `package.module:factory` gives.

    Raises:
        UnsupportedModel: if it cannot be imported or called, or gives something else.
    """
    name, _, factory = arch.partition(":")
    if not name or not factory:
        raise UnsupportedModel(f"--arch {arch!r} must read package.module:factory, such as mymodels.tiny:build")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = getattr(importlib.import_module(name), factory)()
    except (Exception, SystemExit) as error:
        raise UnsupportedModel(
            f"--arch {arch}: {type(error).__name__}: {first_line(error)}; it must be importable from here and "
            "take no arguments"
        ) from None
    if not isinstance(module, nn.Module):
        raise UnsupportedModel(f"--arch {arch} gives a {type(module).__name__}, not a torch.nn.Module")
    return module.eval()
