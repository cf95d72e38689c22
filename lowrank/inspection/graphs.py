"""ONNX files, and those of ONNX Runtime's own formats."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from lowrank.artifacts.outside import is_file, named_in
from lowrank.backends.onnx.inference import DRAWN, as_used
from lowrank.backends.onnx.sites import INTEGER_PRODUCTS
from lowrank.errors import first_line
from lowrank.inspection.description import Description, quoted, tidy
from lowrank.inspection.tensors import rank_of

ROUNDED = INTEGER_PRODUCTS | {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
"""Operators of quantised graphs."""
LARGEST_READ = 1 << 30
PASSING = {"DequantizeLinear", "Cast", "Transpose", "Identity"}
"""Operators behind which a matrix is still the same matrix."""


def look_at_onnx(path: Path) -> Description:
    """An ONNX file: everything but its numbers."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        return Description(
            "damaged",
            "an ONNX file that cannot be read",
            facts={"why": first_line(error)},
            next=("copy or export it again",),
        )
    try:
        return _look(path, model)
    except (IndexError, TypeError, ValueError) as error:
        # Fields that are of the right kind and say what cannot be.
        return Description(
            "damaged",
            "an ONNX file with a graph that is not whole",
            facts={"why": first_line(error)},
            next=("export it again",),
        )


def _look(path: Path, model: Any) -> Description:
    graph = model.graph
    if not graph.node and not graph.initializer:
        return Description("damaged", "no ONNX file, or one with an empty graph", next=("export it again",))
    nodes = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in _nodes(graph))
    dtypes, initializers = _dtypes(graph)
    outside, missing = _outside(path, graph)
    rounded = sorted(name for name in nodes if name.rpartition(".")[2] in ROUNDED)
    factored = _factored(graph)
    facts: dict[str, Any] = {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir_version": model.ir_version,
        "producer": tidy(f"{model.producer_name} {model.producer_version}".strip()),
        "inputs": [_value(v) for v in graph.input if v.name not in initializers],
        "outputs": [_value(v) for v in graph.output],
        "params": sum(prod(t.dims) for t in graph.initializer),
        "dtypes": dtypes,
        "quantised": rounded,
        "nodes": sum(nodes.values()),
        "operators": dict(nodes.most_common()),
        "external_data": outside,
    }
    facts |= {"missing": missing} if missing else {}
    facts |= {"factored": factored} if factored else {}
    notes = _training_notes(model) if nodes.keys() & {"Dropout", "BatchNormalization", *DRAWN} else ()
    facts |= {"notes": tidy(notes)} if notes else {}
    if model.metadata_props:
        facts["metadata"] = tidy({p.key: p.value for p in model.metadata_props})
    optional = [v.name for v in graph.input if v.name in initializers]
    facts |= {"optional_inputs": tidy(optional)} if optional else {}
    parts = [f"{facts['params']:,} numbers", f"{facts['nodes']} nodes"]
    parts += ["quantised"] if rounded else []
    parts += [f"{len(factored)} products in two factors"] if factored else []
    steps = (f"lowrank analyze {quoted(path)}",)
    if rounded:
        steps = ("compress the model that it was made from: a quantised graph stays as it is",)
    elif factored:
        steps = (f"lowrank inspect {quoted(path.parent)}",)
    return Description("onnx", f"an ONNX graph ({', '.join(parts)})", facts=facts, next=steps)


def _nodes(graph: Any, depth: int = 0) -> Iterator[Any]:
    """All nodes, those of branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute if depth < 50 else ():
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner, depth + 1)


def _training_notes(model: Any) -> tuple[str, ...]:
    """What other verbs say of a graph that was exported in training mode; nothing where it cannot be taken apart."""
    import onnx_ir as ir

    try:
        return as_used(ir.from_proto(model))
    except Exception:
        return ()


def _type_name(code: int) -> str:
    import onnx

    try:
        return onnx.TensorProto.DataType.Name(code).lower()  # pyright: ignore[reportArgumentType]
    except ValueError:
        return f"type {code}"


def _dtypes(graph: Any) -> tuple[dict[str, int], set[str]]:
    """How many numbers there are of each type, and the names of what holds them."""
    counts = Counter[str]()
    for tensor in graph.initializer:
        counts[_type_name(tensor.data_type)] += prod(tensor.dims)
    return dict(counts.most_common()), {tensor.name for tensor in graph.initializer}


def _value(value: Any) -> dict[str, Any]:
    kind = value.type.tensor_type
    dims = [d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in kind.shape.dim]
    return {"name": tidy(value.name), "dtype": _type_name(kind.elem_type), "shape": tidy(dims)}


def _outside(path: Path, graph: Any) -> tuple[dict[str, int], list[str]]:
    """External files with numbers of the graph and their bytes, and those that are missing or must not be read."""
    names: set[str] = set()
    for tensor in graph.initializer:
        names |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    sizes: dict[str, int] = {}
    missing: list[str] = []
    for name in sorted(names):
        place = named_in(path.parent, name)
        if place is not None and is_file(place):
            sizes[str(tidy(name))] = place.stat().st_size
        else:
            missing.append(str(tidy(name)))
    return sizes, missing


def _factored(graph: Any) -> list[dict[str, Any]]:
    """Products of a product with a constant with another constant, over fewer channels than either has outside."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    owners = {name: name for name in shapes}
    makers: dict[str, tuple[str, str]] = {}
    """Of each output of a product with a constant: what it read, and the constant."""
    factored: dict[str, dict[str, Any]] = {}
    for name, shape in shapes.items():
        # What this package has made, whatever stands between the two products.
        left = shapes.get(_stem(name) + ".left.weight")
        if name.endswith(".right.weight") and left is not None and shape and left:
            factored[_stem(name)] = {"weight": tidy(_stem(name)), "rank": rank_of(left, shape)}
    for node in graph.node:
        first = node.input[0] if node.input else ""
        if node.op_type in PASSING and first in owners:
            for output in node.output:
                owners[output] = owners[first]
        if node.op_type == "MatMulNBits" and len(node.input) > 1:
            sizes = {a.name: a.i for a in node.attribute}
            shapes[node.input[1]] = (sizes.get("K", 0), sizes.get("N", 0))
            owners[node.input[1]] = node.input[1]
        if node.op_type not in ("MatMul", "Gemm", "MatMulNBits") or len(node.input) < 2 or not node.output:
            continue
        constant = owners.get(node.input[1])
        if constant is None or len(shapes[constant]) != 2:
            continue
        before = makers.get(first)
        if before is not None:
            inner, outer = shapes[before[1]], shapes[constant]
            rank = (set(inner) & set(outer)) or {0}
            if 0 < min(rank) < min(max(inner), max(outer)):
                factored.setdefault(_stem(constant), {"weight": tidy(_stem(constant)), "rank": min(rank)})
        makers[node.output[0]] = (first, constant)
    return list(factored.values())


def _stem(name: str) -> str:
    for end in (".left.weight", ".right.weight"):
        name = name.removesuffix(end)
    return name


def look_at_ort(path: Path) -> Description:
    """A file of ONNX Runtime's own format; its flatbuffer is not looked into."""
    operators = path.with_suffix(".required_operators_and_types.config")
    facts: dict[str, Any] = {"bytes": path.stat().st_size}
    if is_file(operators) and operators.stat().st_size < 1 << 20:
        lines = operators.read_text(encoding="utf-8", errors="replace").splitlines()
        facts["operators"] = tidy([line for line in lines if line and not line.startswith("#")])
    return Description(
        "ort",
        "an ONNX Runtime model (.ort), optimised for builds that hold no more than it needs",
        facts=facts,
        next=(f"onnxruntime.InferenceSession({str(path)!r})",),
    )


def look_at_runtime_adapter(path: Path) -> Description:
    """An adapter in ONNX Runtime's format: its names are read off its bytes, its flatbuffer is not followed."""
    with path.open("rb") as stream:
        content = stream.read(LARGEST_READ)
    names = sorted({name.decode() for name in re.findall(rb"[\w.]{1,200}\.lora_[AB]", content)})
    facts = {"bytes": path.stat().st_size, "tensors": len(names), "contents": [{"name": name} for name in names]}
    return Description(
        "onnx-adapter",
        f"an adapter for ONNX Runtime ({len(names)} tensors)",
        facts=facts,
        next=("onnxruntime.LoraAdapter().Load(...), for a run of model_with_adapters.onnx",),
    )
