"""Provenance: the command that is running, and the versions of what runs it."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lowrank import __version__

PACKAGES = ("numpy", "scipy", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def made_with() -> dict[str, Any]:
    """`command` and `versions`."""
    versions = {"lowrank": __version__, "python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"command": list(sys.argv), "versions": versions}
