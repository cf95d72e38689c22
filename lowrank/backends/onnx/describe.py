"""The weights of a graph: sites that read one constant are layers of one weight."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from lowrank.backends.onnx.constants import constants_of, tensor_of
from lowrank.backends.onnx.equal import Seen
from lowrank.backends.onnx.sites import Site, attribute, find_sites
from lowrank.core.match import role_of, stem
from lowrank.core.weight import Layer, LayerKind, Skip, Weight

SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True, eq=False)
class Use:
    """A site of a weight, and whether it reads the transpose of the weight's matrix."""

    site: Site
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Described:
    """The weights of a graph, where each is applied, and why other constants are skipped."""

    weights: tuple[Weight, ...]
    uses: dict[str, tuple[Use, ...]]
    """By weight name; the first one defines the weight's matrix."""
    skips: tuple[Skip, ...]


def describe(model: Any) -> Described:
    """Weights with their uses, and a reason for every other floating tensor of two or more dimensions."""
    sites, reasons = find_sites(model)
    by_root: dict[int, list[Site]] = {}
    for site in sites:
        by_root.setdefault(id(site.constant.root), []).append(site)
    groups: list[tuple[Use, ...]] = []
    for members in by_root.values():
        group = _together(members) if not _is_public(members[0].constant.root, model) else PUBLIC
        if isinstance(group, str):
            reasons[id(members[0].constant.root)] = group
        else:
            groups.append(group)
    groups = _tied_by_content(groups, model.graph)
    named: dict[str, tuple[Use, ...]] = {}
    for uses in groups:
        name = _unique(_name_of(uses[0].site), named)
        named[name] = uses
    weights = tuple(_weight(name, uses) for name, uses in named.items())
    roles = role_of(weights)
    taken = {id(use.site.constant.root) for uses in named.values() for use in uses}
    return Described(
        tuple(replace(w, role=roles[w.name]) for w in weights),
        named,
        tuple(_skips(model, taken, reasons)),
    )


PUBLIC = "it is also an input or an output of the graph"


def _is_public(root: Any, model: Any) -> bool:
    # Until IR version 3 every initializer stands among the inputs too; later that makes it one to override.
    overridable = root.is_graph_input() and model.ir_version >= 4
    return overridable or root.is_graph_output()


def _together(sites: list[Site]) -> tuple[Use, ...] | str:
    """The sites of one constant as uses of one matrix, or the reason why they cannot be."""
    first = next((s for s in sites if s.kind == "lookup"), sites[0])
    others = [s for s in sites if s is not first]
    uses = [Use(first)]
    for site in others:
        plain = {first.kind, site.kind} <= {"linear", "lookup"} and {first.node.op_type, site.node.op_type} <= {
            "MatMul",
            "Gemm",
            "Gather",
        }
        turns = [s.constant.is_transposed for s in (first, site)]
        if plain and None not in turns:
            flips = [bool(turn) ^ (s.view.stored == "cols rows") for turn, s in zip(turns, (first, site), strict=True)]
            uses.append(Use(site, flips[0] != flips[1]))
        elif site.kind == first.kind and site.view == first.view and _same_value(site, first):
            uses.append(Use(site))
        else:
            return "shared by operators that read it in different ways"
    return tuple(uses)


def _same_value(a: Site, b: Site) -> bool:
    return a.node.inputs[a.at] is b.node.inputs[b.at]


def _tied_by_content(groups: list[tuple[Use, ...]], graph: Any) -> list[tuple[Use, ...]]:
    """Join matrices that hold the same numbers: exporters fold the transposes of a weight that several layers apply
    into a copy for each. A transpose is joined with a table alone, whose head it is."""
    seen, joined = Seen[int](), {i: list(group) for i, group in enumerate(groups)}
    # Tables first: a tie is looked at as the table stores it.
    for i in sorted(joined, key=lambda i: groups[i][0].site.kind != "lookup"):
        site = groups[i][0].site
        if not _is_plain(site, graph):
            continue
        first, turned = seen.first(i, site.constant.array())
        main = groups[first][0].site
        flipped = turned ^ (main.view.stored != site.view.stored)
        if first == i or (flipped and main.kind != "lookup") or site.kind == "lookup":
            continue
        joined[first] += [Use(use.site, use.transposed ^ flipped) for use in joined.pop(i)]
    return [tuple(uses) for uses in joined.values()]


def _is_plain(site: Site, graph: Any) -> bool:
    """Whether a node of the main graph multiplies by one matrix, or looks up rows of it."""
    return site.kind in ("linear", "lookup") and len(site.constant.shape) == 2 and site.node.graph is graph


def _weight(name: str, uses: tuple[Use, ...]) -> Weight:
    site = uses[0].site
    stack, rows, cols = site.view.shape(site.constant.shape)
    dtype = site.constant.tensor.dtype.numpy().name
    layers = tuple(Layer(_layer_name(use.site, name), _kind(use)) for use in uses)
    return Weight(name, rows, cols, dtype, "projection", layers, site.view, stack, site.spatial)


def _kind(use: Use) -> LayerKind:
    node = use.site.node
    scaled = attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0
    plain = (
        node.op_type in ("MatMul", "Gemm") and not scaled and not attribute(node, "transA", 0) and not use.transposed
    )
    return use.site.kind if plain or use.site.kind != "linear" else "contraction"


def _layer_name(site: Site, weight: str) -> str:
    return site.node.name or site.node.outputs[0].name or stem(weight)


def _name_of(site: Site) -> str:
    """The initializer's name, if an exporter did not make it up; else that of the module that the node came from."""
    name = str(site.constant.root.name or "")
    made_up = re.fullmatch(r"onnx::\w+|val_\d+|_?\d+|.*[Cc]onst(ant|_fold_opt)?(_output)?_*\d*(_output_0)?|", name)
    if not made_up:
        return name.removesuffix(":0")
    return f"{_module_path(site.node)}.weight" if _module_path(site.node) else name


def scope_of(node: Any) -> str:
    """The innermost module that torch's exporter says a node came from, `` if it does not say."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return ""
    return str(scopes[-2]) if len(scopes) >= 2 else ""


def _module_path(node: Any) -> str:
    """Where a node stands in the module that was exported, as far as its exporter says."""
    if scope_of(node):
        return scope_of(node)
    parts = [part for part in str(node.name or "").split("/") if part]
    return ".".join(parts[:-1]) if len(parts) > 1 else str(node.name or "")


def _unique(name: str, taken: Iterable[str]) -> str:
    free, number = name, 2
    while free in taken:
        free, number = f"{stem(name)}.{number}.weight", number + 1
    return free


def _skips(model: Any, taken: set[int], reasons: dict[int, str]) -> list[Skip]:
    skips: list[Skip] = []
    for value in constants_of(model):
        tensor = tensor_of(value)
        shape = tuple(tensor.shape.numpy())
        reason = reasons.get(id(value))
        matters = tensor.dtype.is_floating_point() or (reason or "").startswith("quantised")
        if id(value) not in taken and len(shape) >= 2 and matters:
            skips.append(Skip(str(value.name), shape, reason or _passed_on(value)))
    return skips


def _passed_on(value: Any) -> str:
    readers = {node.op_type for node in value.consumers()}
    return f"an operand of {', '.join(sorted(readers))}" if readers else "nothing reads it"
