"""Check that no module outside `core/structures` names a structure: they are one line each of `STRUCTURES`.

A name that is no common word may stand nowhere. The common ones, in `COMMON`, are also columns of a report (the dense
model), operators of a table of timings, or keys of a record. Of these only uses as a structure count: what is compared
with something called `structure`, or matched with it, what is given to `Replacement`, `Curve`, `Option` or
`structure_named`, and a list of nothing but structures.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMON = {"dense", "product", "spatial"}
MAKERS = {"Replacement", "Curve", "Option", "structure_named", "empty"}


def names_of(package: Path) -> set[str]:
    """The registered names, read without importing anything."""
    tree = ast.parse((package / "core/structures/__init__.py").read_text(encoding="utf-8"))
    registry = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "STRUCTURES"
    )
    return set(ast.literal_eval(registry))


def literals(node: ast.AST) -> Iterator[ast.Constant]:
    """All strings in a piece of code."""
    return (each for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str))


def used(tree: ast.AST, names: set[str]) -> Iterator[ast.Constant]:
    """The strings of a module that name a structure."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in names - COMMON:
            yield node
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any("structure" in ast.unparse(side).rpartition(".")[2] for side in sides):
                yield from (each for side in sides for each in literals(side) if each.value in names)
        elif isinstance(node, ast.Match) and "structure" in ast.unparse(node.subject):
            yield from (each for case in node.cases for each in literals(case.pattern) if each.value in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in MAKERS:
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            yield from (each for each in given if isinstance(each, ast.Constant) and each.value in names)
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            members = [each.value for each in node.elts if isinstance(each, ast.Constant)]
            if len(members) == len(node.elts) and len(set(members)) > 1 and set(members) <= names:
                yield from literals(node)


def violations(package: Path) -> list[str]:
    """One line for each name of a structure that stands where it should not."""
    names = names_of(package)
    return sorted(
        {
            f"{path.relative_to(package.parent)}:{each.lineno}: names the structure {each.value!r}; ask it for a trait"
            for path in sorted(package.rglob("*.py"))
            if path.parent != package / "core/structures"
            for each in used(ast.parse(path.read_text(encoding="utf-8")), names)
        }
    )


if __name__ == "__main__":
    wrong = violations(ROOT / "lowrank")
    print("\n".join(wrong) or "no module names a structure")
    sys.exit(bool(wrong))
