"""Products and lookups of codes in a graph.

Eight bits are standard operators. Fewer bits with steps are unpacked to them (`packing`): the runtime does that once
for a product, when it loads the file, and for each row that is looked up. Four bits with a scale a block are ONNX
Runtime's own operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.backends.onnx.edit import add, constant, replace_node
from lowrank.backends.onnx.sites import Site
from lowrank.core.rounding.codes import Codes
from lowrank.core.rounding.ranges import Range
from lowrank.edge.packing import store, unpacked
from lowrank.edge.products import SCALE, Inputs, ranges_in
from lowrank.errors import ExportError, first_line

CONTRIB = "com.microsoft"
FLOAT, INT8 = 1, 3
"""ONNX's numbers for these types."""
FAST = 4
"""MatMulNBits with inputs rounded to eight bits, too: several times faster than with inputs as they are."""


CODES = tuple(f".{name}" for name in ("int8", "int4", "int3", "int2"))
"""The ends of the names of stored codes."""


Stored = Mapping[str, Any]
"""Constants that hold the codes of a weight, by the ends of their names."""


def place_product(
    site: Site,
    codes: Codes,
    name: str,
    inputs: Inputs,
    table: Stored | None = None,
    beside: tuple[Codes, Codes] | None = None,
) -> None:
    """Codes (outputs x inputs) in the place of the constant of a MatMul or a Gemm.

    Args:
        site: the node, whose second input the constant is.
        codes: with one scale a row, perhaps with steps, or of 4 bits with a scale a block.
        name: of the weight.
        inputs: how what it reads is rounded.
        table: where the codes are stored already, with one scale a row.
        beside: two factors, the one that meets the input first, whose product is added.
    """
    node = site.node
    whole = codes.bits == 8 or codes.steps is not None
    product = _eight(node, site.vectors, codes, name, inputs, table) if whole else _four(site, codes, name)
    if beside is not None:
        inner = _eight(node, site.vectors, beside[0], f"{name}.right", inputs, part="right")
        outer = _eight(node, inner.outputs[0], beside[1], f"{name}.left", inputs, part="left")
        product = add(node, "Add", [product.outputs[0], outer.outputs[0]], part="sum")
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if bias is not None:
        product = add(node, "Add", [product.outputs[0], bias], part="biased")
    replace_node(node, product.outputs[0])


def _eight(
    node: Any,
    vectors: Any,
    codes: Codes,
    name: str,
    inputs: Inputs,
    table: Stored | None = None,
    part: str = "integer",
) -> Any:
    """A product with codes of eight bits, or with what is unpacked to them."""
    graph = node.graph
    # What is made of constants alone the runtime computes once, when it loads the file.
    if codes.steps is not None:
        packed = store(graph, name, codes) if table is None else table
        numbers = add(node, "Cast", [unpacked(node, packed, codes)], part="eight", to=INT8).outputs[0]
        stored = add(node, "Transpose", [numbers], part="turned", perm=[1, 0]).outputs[0]
    elif table is None:
        stored = constant(graph, f"{name}.int8", np.ascontiguousarray(codes.codes.T))
    else:
        stored = add(node, "Transpose", [table["int8"]], part="turned", perm=[1, 0]).outputs[0]
    sizes = constant(graph, f"{name}{SCALE}", codes.scale[:, 0])
    return inputs.product(node, vectors, stored, sizes, part)


def weights_in_bits(path: Path) -> Mapping[str, Range | None]:
    """The names of the weights that a graph of ours has codes of, each with the range that is fixed of what it is
    multiplied with.

    Raises:
        ExportError: if it is missing or damaged.
    """
    import onnx_ir as ir

    try:
        graph = ir.load(path).graph
        names, ranges = list(graph.initializers), ranges_in(graph)
    except Exception as error:
        raise ExportError(f"{path} cannot be read ({first_line(error)})") from None
    held = (name.removesuffix(end) for name in names for end in CODES if name.endswith(end))
    return {name: ranges.get(name) for name in held}


def _four(site: Site, codes: Codes, name: str) -> Any:
    node, (rows, cols) = site.node, codes.codes.shape
    graph, blocks = node.graph, codes.scale.shape[1]
    padded = np.full((rows, blocks * codes.block), 8, np.uint8)
    padded[:, :cols] = codes.codes + 8
    pairs = padded.reshape(rows, blocks, codes.block // 2, 2)
    packed = pairs[..., 0] | pairs[..., 1] << 4
    stored = constant(graph, f"{name}.int4", packed)
    sizes = constant(graph, f"{name}.scale", codes.scale.reshape(-1))
    settings = {"K": cols, "N": rows, "bits": 4, "block_size": codes.block, "accuracy_level": FAST}
    return add(node, "MatMulNBits", [site.vectors, stored, sizes], part="int4", domain=CONTRIB, **settings)


def place_lookup(site: Site, codes: Codes, name: str) -> Stored:
    """Codes (rows of the table x width) in the place of the table of a Gather; where they are stored."""
    import onnx_ir as ir

    node, ids = site.node, site.node.inputs[1]
    graph = node.graph
    sizes = constant(graph, f"{name}.scale", codes.scale)
    if codes.bits == 8 or codes.steps is not None:
        eight = codes.steps is None
        stored = {"int8": constant(graph, f"{name}.int8", codes.codes)} if eight else store(graph, name, codes)
        picked = {
            end: add(node, "Gather", [each, ids], part=f"picked.{end}", axis=0).outputs[0]
            for end, each in stored.items()
        }
        if eight:
            numbers = add(node, "Cast", [picked["int8"]], part="cast", to=FLOAT).outputs[0]
        else:
            numbers = unpacked(node, picked, codes)
        scale = add(node, "Gather", [sizes, ids], part="scale", axis=0)
        result = add(node, "Mul", [numbers, scale.outputs[0]], part="scaled")
    else:
        stored = {"int4": constant(graph, f"{name}.int4", codes.codes, ir.DataType.INT4)}
        settings = {"gather_axis": 0, "quantize_axis": 1, "block_size": codes.block}
        result = add(
            node, "GatherBlockQuantized", [stored["int4"], ids, sizes], part="int4", domain=CONTRIB, **settings
        )
    replace_node(node, result.outputs[0])
    return stored
