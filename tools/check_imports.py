"""Check that imports go one way and in no circle, those inside functions and for types alone too: see `LAYERS`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAYERS = (
    {"version", "errors"},
    {"flat_yaml", "interrupts", "machine", "progress"},
    {"core", "parallel"},
    {"artifacts"},
    {"nn"},
    {"backends"},
    {"calibrate", "healing", "edge"},
    {"results"},
    {"evaluate", "baselines"},
    {"report"},
    {"pipeline"},
    {"integrations"},
    {"inspection", "doctor"},
    {"cli"},
    {"__init__", "__main__"},
)
"""A unit imports from itself and from layers above its own in this list."""
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


def layer_of(unit: str) -> int:
    """The place of a unit, the first part of a module's name after the package, in `LAYERS`."""
    return next(i for i, units in enumerate(LAYERS) if unit in units)


def module_of(path: Path, package: Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, modules: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and module of every import in a file. `from package import name` counts as `package.name` if that is a
    module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in modules else node.module


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, the first one again at its end; nothing if there is none."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(graph.get(module, ())):
            if around := search(other, [*path, module]):
                return around
        done.add(module)
        return []

    return next((around for module in sorted(graph) if (around := search(module, []))), [])


def violations(package: Path) -> list[str]:
    """One line for each import that goes the wrong way, and one for a circle."""
    modules = {module_of(path, package): path for path in sorted(package.rglob("*.py"))}
    problems: list[str] = []
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        here = path.relative_to(package).parts[0].removesuffix(".py")
        graph[name] = set()
        for line, module in imports_of(path, modules):
            where = f"{path.relative_to(package.parent)}:{line}"
            top, *rest = module.split(".")
            if here == "core" and top in BANNED_IN_CORE:
                problems.append(f"{where}: core imports {top}")
            if top != package.name or name == package.name:
                continue
            there = rest[0] if rest else "__init__"
            if there != here and layer_of(there) >= layer_of(here):
                problems.append(f"{where}: {here} imports {there}")
            if module in modules and module != name:
                graph[name].add(module)
    around = circle(graph)
    return [*problems, *([f"a circle: {' -> '.join(around)}"] if around else [])]


if __name__ == "__main__":
    wrong = violations(ROOT / "lowrank")
    print("\n".join(wrong) or "imports go one way, and in no circle")
    sys.exit(bool(wrong))
