"""Check that imports go one way, from core up to cli: see `LAYERS`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAYERS = (
    {"core"},
    {"nn"},
    {"backends"},
    {"calibrate", "healing", "edge"},
    {"evaluate", "baselines"},
    {"report"},
    {"pipeline"},
    {"integrations"},
    {"options", "run_file"},
    {"inspection", "doctor"},
    {"cli_edge", "cli_heal", "cli_inspect", "cli_plots"},
    {"cli_sweep", "cli_truncate"},
    {"cli"},
    {"__init__", "__main__"},
)
ANYWHERE = {"errors", "interrupts", "machine", "parallel", "progress"}
BANNED_IN_CORE = {
    "torch",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "transformers",
    "safetensors",
    "rich",
    "typer",
}


def layer_of(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Line and module of every import in a file, those inside functions too."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module))
    return found


def violations(package: Path) -> list[str]:
    """One line for each import that goes the wrong way."""
    problems: list[str] = []
    for path in sorted(package.rglob("*.py")):
        here = path.relative_to(package).parts[0].removesuffix(".py")
        for line, module in imports_of(path):
            where = f"{path.relative_to(package.parent)}:{line}"
            top, *rest = module.split(".")
            if here == "core" and top in BANNED_IN_CORE:
                problems.append(f"{where}: core imports {top}")
            if top != package.name or not rest or here in ANYWHERE | {"__init__"}:
                continue
            there = rest[0]
            # Artifacts stand beside the core: they may use it, and everything above may use them.
            if there in ANYWHERE or there == here or (there == "artifacts" and here != "core"):
                continue
            if here == "artifacts":
                if there != "core":
                    problems.append(f"{where}: artifacts import {there}")
            elif layer_of(there) >= layer_of(here):
                problems.append(f"{where}: {here} imports {there}")
    return problems


if __name__ == "__main__":
    found = violations(ROOT / "lowrank")
    print("\n".join(found) or "imports go one way")
    sys.exit(bool(found))
