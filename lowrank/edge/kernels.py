"""Graphs of single operators, to be timed where a model will run: some hundred bytes each, as weights are all alike."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank.backends.onnx.opset import IR_VERSION, OPSET
from lowrank.core.selection.timings import Operator

PLACE = "WORK = None\n"
"""The line of the script that the graphs are put into."""
WIDEST, MOST = 64 << 20, 128
"""Bytes of weights in a graph at most, and how many weights."""


def work_of(
    sizes: Mapping[Operator, Sequence[tuple[int, int]]],
    *,
    numbers: int,
    tokens: int,
    threads: int,
    dtype: str,
    step: int,
) -> dict[str, Any]:
    """What `timing_script.measure` is given.

    Args:
        sizes: of operators; see `core.timings.sizes_for`.
        numbers: in the weights of the dense model. A graph holds half as many, since how fast they come depends on how
            many are read in turn, and a compressed model has fewer.
        tokens: rows that are multiplied.
        threads: inside an operator.
        dtype: `float32` or `int8`, of products.
        step: between sizes.
    """
    width = 1 if dtype == "int8" else 4
    kernels, together = [], min(numbers * width // 2, WIDEST)
    for operator, points in sizes.items():
        for first, second in points:
            copies = min(max(1, together // (first * second * width)), MOST) if operator == "product" else 1
            graph = _graph(operator, first, second, tokens, dtype, copies)
            kernels.append([operator, first, second, base64.b64encode(zlib.compress(graph)).decode(), copies])
    return {"tokens": tokens, "threads": threads, "dtype": dtype, "step": step, "kernels": kernels}


def write_script(work: Mapping[str, Any], path: Path) -> None:
    """One file that measures without this package: the script with the graphs in it."""
    from lowrank.edge import timing_script

    source = Path(timing_script.__file__).read_text(encoding="utf-8")
    assert source.count(PLACE) == 1
    path.write_text(source.replace(PLACE, f"WORK = json.loads({json.dumps(work)!r})\n"), encoding="utf-8")


def _graph(operator: Operator, first: int, second: int, tokens: int, dtype: str, copies: int) -> bytes:
    import onnx
    from onnx import TensorProto, helper

    nodes: list[Any] = []

    def filled(name: str, shape: Sequence[int], kind: int, value: float) -> str:
        """A constant of equal numbers, which the runtime makes when it loads the graph."""
        size = helper.make_tensor(f"{name}.size", TensorProto.INT64, [len(shape)], list(shape))
        number = helper.make_tensor(f"{name}.value", kind, [1], [value])
        nodes.append(helper.make_node("Constant", [], [f"{name}.shape"], value=size))
        nodes.append(helper.make_node("ConstantOfShape", [f"{name}.shape"], [name], value=number))
        return name

    inputs: dict[str, list[int]]
    output = [1, tokens, second]
    if operator == "product":
        inputs, output = {"x": [1, tokens, first]}, [1, second]
        for i in range(copies):
            # Equal ones would be merged.
            _product(nodes, filled, f"{i}", first, second, dtype, i % 100 + 1)
    elif operator == "concat":
        inputs = {"x": [1, tokens, second // 2], "z": [1, tokens, second - second // 2]}
        nodes.append(helper.make_node("Concat", ["x", "z"], ["y0"], axis=-1))
    elif operator == "activation":
        inputs = {"x": [1, tokens, second]}
        nodes.append(helper.make_node("Gelu", ["x"], ["y0"]))
    else:
        inputs, output = _attention(nodes, operator, first, second, tokens)
    graph = helper.make_graph(
        nodes,
        operator,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, output) for i in range(copies)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _attention(
    nodes: list[Any], operator: Operator, heads: int, width: int, tokens: int
) -> tuple[dict[str, list[int]], list[int]]:
    """What attention does with two projections, and the turns that make heads of channels, and channels of heads.

    Returns:
        The shapes of the inputs, by name, and that of the output.
    """
    from onnx import TensorProto, helper

    channels, between = [1, tokens, heads * width], [1, heads, tokens, tokens]

    def shaped(name: str, shape: Sequence[int], result: str) -> None:
        size = helper.make_tensor(f"{result}.size", TensorProto.INT64, [len(shape)], list(shape))
        nodes.append(helper.make_node("Constant", [], [f"{result}.shape"], value=size))
        nodes.append(helper.make_node("Reshape", [name, f"{result}.shape"], [result]))

    def turned(name: str, axes: Sequence[int]) -> str:
        shaped(name, [1, tokens, heads, width], f"{name}.heads")
        nodes.append(helper.make_node("Transpose", [f"{name}.heads"], [f"{name}.turned"], perm=axes))
        return f"{name}.turned"

    if operator == "scores":
        pair = [turned("x", [0, 2, 1, 3]), turned("z", [0, 2, 3, 1])]
        nodes.append(helper.make_node("MatMul", pair, ["y0"]))
        return {"x": channels, "z": channels}, between
    nodes.append(helper.make_node("MatMul", ["x", turned("z", [0, 2, 1, 3])], ["mixed"]))
    nodes.append(helper.make_node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]))
    shaped("back", channels, "y0")
    return {"x": between, "z": channels}, channels


def _product(nodes: list[Any], filled: Any, tag: str, cols: int, rows: int, dtype: str, number: int) -> None:
    """A product with a constant, and its bias, as `edge.integer` and the exporter write them."""
    from onnx import TensorProto, helper

    if dtype == "int8":
        weight = filled(f"w{tag}", (cols, rows), TensorProto.INT8, number)
        scale = filled(f"s{tag}", (rows,), TensorProto.FLOAT, 0.01 * number)
        zero = helper.make_tensor("zero", TensorProto.INT8, [], [0])
        nodes += [
            helper.make_node("Constant", [], [f"zero{tag}"], value=zero),
            helper.make_node("DynamicQuantizeLinear", ["x"], [f"q{tag}", f"qs{tag}", f"qz{tag}"]),
            helper.make_node("MatMulInteger", [f"q{tag}", weight, f"qz{tag}", f"zero{tag}"], [f"i{tag}"]),
            helper.make_node("Cast", [f"i{tag}"], [f"f{tag}"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"qs{tag}", scale], [f"both{tag}"]),
            helper.make_node("Mul", [f"f{tag}", f"both{tag}"], [f"m{tag}"]),
        ]
    else:
        weight = filled(f"w{tag}", (cols, rows), TensorProto.FLOAT, 0.01 * number)
        nodes.append(helper.make_node("MatMul", ["x", weight], [f"m{tag}"]))
    bias = filled(f"b{tag}", (rows,), TensorProto.FLOAT, 0.01 * number)
    nodes.append(helper.make_node("Add", [f"m{tag}", bias], [f"p{tag}"]))
    # As in a model, what comes next is given the memory of what was read; outputs would take new memory each.
    first = helper.make_tensor("first", TensorProto.INT64, [], [0])
    nodes.append(helper.make_node("Constant", [], [f"first{tag}"], value=first))
    nodes.append(helper.make_node("Gather", [f"p{tag}", f"first{tag}"], [f"y{tag}"], axis=1))
