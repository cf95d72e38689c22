"""Products and lookups of codes in a graph.

Eight bits are standard operators. Four bits with steps are unpacked to them: the runtime does that once for a product,
when it loads the file, and for each row that is looked up. Four bits with a scale a block are ONNX Runtime's own
operators.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.onnx.edit import add, constant, new_node, replace_node
from lowrank.backends.onnx.sites import Site
from lowrank.core.rounding.codes import Codes
from lowrank.errors import ExportError, first_line

CONTRIB = "com.microsoft"
FLOAT, INT8 = 1, 3
"""ONNX's numbers for these types."""
FAST = 4
"""MatMulNBits with inputs rounded to eight bits, too: several times faster than with inputs as they are."""


CODES = (".int8", ".int4")
"""The ends of the names of stored codes."""


Rounded = dict[str, tuple[Any, Any, Any]]
"""Values in eight bits with their scale and zero, by the name of what was rounded: several products read one."""


def place_product(
    site: Site,
    codes: Codes,
    name: str,
    rounded: Rounded,
    table: Any = None,
    beside: tuple[Codes, Codes] | None = None,
) -> None:
    """Codes (outputs x inputs) in the place of the constant of a MatMul or a Gemm.

    Args:
        site: the node, whose second input the constant is.
        codes: with one scale a row, perhaps with steps, or of 4 bits with a scale a block.
        name: of the weight.
        rounded: inputs that are rounded already.
        table: where the codes are stored already, with one scale a row.
        beside: two factors, the one that meets the input first, whose product is added.
    """
    node = site.node
    whole = codes.bits == 8 or codes.steps is not None
    product = _eight(node, site.vectors, codes, name, rounded, table) if whole else _four(site, codes, name)
    if beside is not None:
        inner = _eight(node, site.vectors, beside[0], f"{name}.right", rounded, part="right")
        outer = _eight(node, inner.outputs[0], beside[1], f"{name}.left", rounded, part="left")
        product = add(node, "Add", [product.outputs[0], outer.outputs[0]], part="sum")
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if bias is not None:
        product = add(node, "Add", [product.outputs[0], bias], part="biased")
    replace_node(node, product.outputs[0])


def _eight(
    node: Any, vectors: Any, codes: Codes, name: str, rounded: Rounded, table: Any = None, part: str = "integer"
) -> Any:
    """`DynamicQuantizeLinear, MatMulInteger, Cast, Mul`: the runtime makes one operator of them."""
    graph = node.graph
    if vectors.name not in rounded:
        rounding = add(_after(vectors, node), "DynamicQuantizeLinear", [vectors], part=f"{part}.rounded", outputs=3)
        rounded[vectors.name] = tuple(rounding.outputs)
    inputs, scale, zero = rounded[vectors.name]
    # What is made of constants alone the runtime computes once, when it loads the file.
    if codes.steps is not None:
        packed = constant(graph, f"{name}.int4", pack(codes)) if table is None else table
        numbers = add(node, "Cast", [_unpacked(node, packed, codes)], part="codes", to=INT8).outputs[0]
        stored = add(node, "Transpose", [numbers], part="turned", perm=[1, 0]).outputs[0]
    elif table is None:
        stored = constant(graph, f"{name}.int8", np.ascontiguousarray(codes.codes.T))
    else:
        stored = add(node, "Transpose", [table], part="turned", perm=[1, 0]).outputs[0]
    nought = constant(graph, "int8.zero", np.zeros((), np.int8))
    sizes = constant(graph, f"{name}.scale", codes.scale[:, 0])
    product = add(node, "MatMulInteger", [inputs, stored, zero, nought], part=part)
    cast = add(node, "Cast", [product.outputs[0]], part=f"{part}.cast", to=FLOAT)
    both = add(node, "Mul", [scale, sizes], part=f"{part}.scale")
    return add(node, "Mul", [cast.outputs[0], both.outputs[0]], part=f"{part}.scaled")


def weights_in_bits(path: Path) -> frozenset[str]:
    """The names of the weights that a graph of ours has codes of.

    Raises:
        ExportError: if it is missing or damaged.
    """
    import onnx_ir as ir

    try:
        names = list(ir.load(path).graph.initializers)
    except Exception as error:
        raise ExportError(f"{path} cannot be read ({first_line(error)})") from None
    return frozenset(name.removesuffix(end) for name in names for end in CODES if name.endswith(end))


def pack(codes: Codes) -> NDArray[np.uint8]:
    """Codes and then steps of each row in four bits each: the first half of them low, the second half high."""
    assert codes.steps is not None
    nibbles = (np.concatenate([codes.codes, codes.steps], 1) + 8).astype(np.uint8)
    if nibbles.shape[1] % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)))
    low, high = np.split(nibbles, 2, axis=1)
    return np.bitwise_or(low, np.left_shift(high, 4))


def _unpacked(node: Any, packed: Any, codes: Codes) -> Any:
    """Products of codes and steps, as floating numbers: what `pack` made, or some rows of it."""
    assert codes.steps is not None
    graph, (cols, blocks) = node.graph, (codes.codes.shape[1], codes.steps.shape[1])
    # A remainder, as BitwiseAnd came with a later operator set than all else here.
    low = add(node, "Mod", [packed, constant(graph, "int4.base", np.array(16, np.uint8))], part="low")
    shift = constant(graph, "int4.shift", np.array(4, np.uint8))
    high = add(node, "BitShift", [packed, shift], part="high", direction="RIGHT")
    both = add(node, "Concat", [low.outputs[0], high.outputs[0]], part="nibbles", axis=-1)
    signed = add(node, "Cast", [both.outputs[0]], part="float", to=FLOAT)
    eight = constant(graph, "int4.zero", np.array(8, np.float32))
    levels = add(node, "Sub", [signed.outputs[0], eight], part="levels")
    sizes = [cols, blocks] if (cols + blocks) % 2 == 0 else [cols, blocks, 1]
    split = constant(graph, f"int4.split.{cols}", np.array(sizes, np.int64))
    parts = add(node, "Split", [levels.outputs[0], split], part="part", outputs=len(sizes), axis=-1)
    spread = add(node, "Gather", [parts.outputs[1], _places(graph, cols, codes.block)], part="steps", axis=-1)
    return add(node, "Mul", [parts.outputs[0], spread.outputs[0]], part="numbers").outputs[0]


def _places(graph: Any, cols: int, block: int) -> Any:
    """Which block each number of a row is in: computed, as written out it would be larger than many a factor."""
    name = f"int4.places.{cols}"
    known = next((node for node in graph if node.outputs[0].name == name), None)
    if known is None:
        start, one = (constant(graph, f"int4.{n}", np.array(n, np.int64)) for n in (0, 1))
        bounds = [start, constant(graph, f"int4.{cols}", np.array(cols, np.int64)), one]
        counted = new_node("Range", bounds, name=f"int4.range.{cols}", output=f"int4.range.{cols}")
        each = constant(graph, f"int4.{block}", np.array(block, np.int64))
        known = new_node("Div", [counted.outputs[0], each], name=name, output=name)
        graph.insert_before(graph[0], [counted, known])
    return known.outputs[0]


def _after(value: Any, node: Any) -> Any:
    """The node in front of which something may be put that reads a value and is read by a node and others like it."""
    uses = {node, *(use.node for use in value.uses() if use.node.graph is node.graph)}
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
    return add(node, "MatMulNBits", [site.vectors, stored, sizes], part="int4", domain=CONTRIB, **settings)


def place_lookup(site: Site, codes: Codes, name: str) -> Any:
    """Codes (rows of the table x width) in the place of the table of a Gather; where they are stored."""
    import onnx_ir as ir

    node, ids = site.node, site.node.inputs[1]
    graph = node.graph
    sizes = constant(graph, f"{name}.scale", codes.scale)
    if codes.bits == 8 or codes.steps is not None:
        kind, rows = ("int8", codes.codes) if codes.steps is None else ("int4", pack(codes))
        stored = constant(graph, f"{name}.{kind}", rows)
        picked = add(node, "Gather", [stored, ids], part="codes", axis=0).outputs[0]
        if codes.steps is None:
            numbers = add(node, "Cast", [picked], part="cast", to=FLOAT).outputs[0]
        else:
            numbers = _unpacked(node, picked, codes)
        scale = add(node, "Gather", [sizes, ids], part="scale", axis=0)
        result = add(node, "Mul", [numbers, scale.outputs[0]], part="scaled")
    else:
        stored = constant(graph, f"{name}.int4", codes.codes, ir.DataType.INT4)
        settings = {"gather_axis": 0, "quantize_axis": 1, "block_size": codes.block}
        result = add(node, "GatherBlockQuantized", [stored, ids, sizes], part="int4", domain=CONTRIB, **settings)
    replace_node(node, result.outputs[0])
    return stored
