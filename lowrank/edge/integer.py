"""Products and lookups of codes in a graph: eight bits by standard operators, four by ONNX Runtime's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowrank.backends.onnx.sites import Site
from lowrank.core.codes import Codes
from lowrank.edge.place import add, constant, replace_node

CONTRIB = "com.microsoft"
FLOAT = 1
FAST = 4
"""MatMulNBits with inputs rounded to eight bits, too: several times faster than with inputs as they are."""


def place_product(
    site: Site, codes: Codes, name: str, quantised: dict[str, tuple[Any, Any, Any]], table: Any = None
) -> None:
    """Codes (outputs x inputs) in the place of the constant of a MatMul or a Gemm.

    Args:
        site: the node, whose second input the constant is.
        codes: of 8 bits with one scale a row, or of 4 with one a block.
        name: of the weight.
        quantised: inputs that are rounded already, by name: several products read one.
        table: where the codes are stored already, of 8 bits.
    """
    node = site.node
    product = _eight(site, codes, name, quantised, table) if codes.bits == 8 else _four(site, codes, name)
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if bias is not None:
        product = add(node, "Add", [product.outputs[0], bias], part="biased")
    replace_node(node, product.outputs[0])


def _eight(site: Site, codes: Codes, name: str, quantised: dict[str, tuple[Any, Any, Any]], table: Any) -> Any:
    """`DynamicQuantizeLinear, MatMulInteger, Cast, Mul`: the runtime makes one operator of them."""
    node, seen = site.node, site.seen
    if seen.name not in quantised:
        rounded = add(_after(seen, node), "DynamicQuantizeLinear", [seen], part="rounded", outputs=3)
        quantised[seen.name] = tuple(rounded.outputs)
    numbers, scale, zero = quantised[seen.name]
    graph = node.graph
    if table is None:
        stored = constant(graph, f"{name}.int8", np.ascontiguousarray(codes.codes.T))
    else:
        # The runtime turns it once, when it loads the file.
        stored = add(node, "Transpose", [table], part="codes", perm=[1, 0]).outputs[0]
    nought = constant(graph, f"{name}.zero", np.zeros((), np.int8))
    sizes = constant(graph, f"{name}.scale", codes.scale[:, 0])
    product = add(node, "MatMulInteger", [numbers, stored, zero, nought], part="integer")
    cast = add(node, "Cast", [product.outputs[0]], part="cast", to=FLOAT)
    both = add(node, "Mul", [scale, sizes], part="scale")
    return add(node, "Mul", [cast.outputs[0], both.outputs[0]], part="scaled")


def _after(value: Any, node: Any) -> Any:
    """The node in front of which something may be put that reads a value and is read by a node and others like it."""
    uses = {use.node for use in value.uses() if use.node.graph is node.graph}
    return next(each for each in node.graph if each in uses)


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
    return add(node, "MatMulNBits", [site.seen, stored, sizes], part="int4", domain=CONTRIB, **settings)


def place_lookup(site: Site, codes: Codes, name: str) -> Any:
    """Codes (rows of the table x width) in the place of the table of a Gather; where they are stored."""
    import onnx_ir as ir

    node, ids = site.node, site.node.inputs[1]
    graph = node.graph
    if codes.bits == 8:
        stored = constant(graph, f"{name}.int8", codes.codes)
        sizes = constant(graph, f"{name}.scale", codes.scale)
        picked = add(node, "Gather", [stored, ids], part="codes", axis=0)
        cast = add(node, "Cast", [picked.outputs[0]], part="cast", to=FLOAT)
        scale = add(node, "Gather", [sizes, ids], part="scale", axis=0)
        found = add(node, "Mul", [cast.outputs[0], scale.outputs[0]], part="scaled")
    else:
        stored = constant(graph, f"{name}.int4", codes.codes, ir.DataType.INT4)
        sizes = constant(graph, f"{name}.scale", codes.scale)
        settings = {"gather_axis": 0, "quantize_axis": 1, "block_size": codes.block}
        found = add(node, "GatherBlockQuantized", [stored, ids, sizes], part="int4", domain=CONTRIB, **settings)
    replace_node(node, found.outputs[0])
    return stored
