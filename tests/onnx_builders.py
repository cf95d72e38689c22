"""Small ONNX graphs as exporters of all kinds write them, each with inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from builders import decaying
from onnx import TensorProto, helper, numpy_helper

IN, OUT = 12, 16
Built = tuple[onnx.ModelProto, dict[str, np.ndarray]]


def weight(rows: int = IN, cols: int = OUT, seed: int = 0) -> np.ndarray:
    return decaying(rows, cols, seed).astype(np.float32)


def init(array: np.ndarray, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array, order="C"), name)


def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"/layers.0/{output}/{op}", **attributes)


def model(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    x: tuple[Any, ...] = ("batch", "sequence", IN),
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    output: int = TensorProto.FLOAT,
    functions: list[onnx.FunctionProto] | None = None,
    ir_version: int = 8,
) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", kind, x)]
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in initializers]
    outputs = [helper.make_tensor_value_info("y", output, None)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers, doc_string="kept")
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid("local", 1)] if functions else [])
    made = helper.make_model(graph, opset_imports=opsets, functions=functions or [], ir_version=ir_version)
    made.producer_name = "somebody"
    helper.set_model_props(made, {"license": "kept"})
    return made


def floats(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(7).standard_normal(shape).astype(np.float32)}


def matmul_right(opset: int = 17, ir_version: int = 8) -> Built:
    made = model([node("MatMul", ["x", "w"], "y")], [init(weight(), "w")], opset=opset, ir_version=ir_version)
    return made, floats(2, 3, IN)


def matmul_left() -> Built:
    made = model([node("MatMul", ["w", "x"], "y")], [init(weight(OUT, IN), "w")], ("batch", IN, "sequence"))
    return made, floats(2, IN, 3)


def gemm(trans_a: int, trans_b: int, alpha: float, beta: float, bias: bool, opset: int = 17) -> Built:
    w = init(weight(OUT, IN) if trans_b else weight(), "w")
    inputs = ["x", "w", *(["c"] if bias else [])]
    attributes = {"transA": trans_a, "transB": trans_b, "alpha": alpha, "beta": beta}
    shape = (IN, "batch") if trans_a else ("batch", IN)
    made = model(
        [node("Gemm", inputs, "y", **attributes)],
        [w, *([init(np.arange(OUT, dtype=np.float32), "c")] if bias else [])],
        shape,
        opset,
    )
    return made, floats(*((IN, 3) if trans_a else (3, IN)))


def conv(kernel: tuple[int, ...], groups: int = 1, bias: bool = True, **attributes: Any) -> Built:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((16, 12 // groups, *kernel)).astype(np.float32)
    inputs = ["x", "w", *(["b"] if bias else [])]
    initializers = [init(w, "w"), *([init(np.arange(16, dtype=np.float32), "b")] if bias else [])]
    sizes = (9, 8)[: len(kernel)]
    nodes = [node("Conv", inputs, "y", group=groups, **attributes)]
    return model(nodes, initializers, ("batch", 12, *sizes)), floats(2, 12, *sizes)


def lookup() -> Built:
    made = model([node("Gather", ["t", "x"], "y")], [init(weight(40, 12), "t")], ("batch", "sequence"), kind=7)
    return made, {"x": np.array([[1, 5, 39], [0, 2, 2]])}


def tied(copied: bool) -> Built:
    table = weight(40, 12)
    nodes = [node("Gather", ["t", "x"], "h")]
    initializers = [init(table, "t")]
    if copied:
        initializers.append(init(table.T, "head"))
        nodes.append(node("MatMul", ["h", "head"], "y"))
    else:
        nodes += [node("Transpose", ["t"], "turned", perm=[1, 0]), node("MatMul", ["h", "turned"], "y")]
    return model(nodes, initializers, ("batch", "sequence"), kind=7), {"x": np.array([[1, 5, 39], [0, 2, 2]])}


def constant_node() -> Built:
    made = helper.make_node("Constant", [], ["w"], name="constant", value=init(weight(), "w"))
    return model([made, node("MatMul", ["x", "w"], "y")], []), floats(2, 3, IN)


def through(*ops: str) -> Built:
    """A weight that is moved about before it is used."""
    stored, nodes, initializers, last = weight(), [], [], "w"
    for op in reversed(ops):
        if op == "Transpose":
            stored = stored.T
        elif op == "Cast":
            stored = stored.astype(np.float16)
        elif op == "Reshape":
            stored = stored.reshape(3, 4, OUT) if stored.ndim == 2 and stored.shape[0] == IN else stored.reshape(-1)
    initializers.append(init(stored, "w"))
    for number, op in enumerate(ops):
        out = f"w{number}"
        if op == "Transpose":
            nodes.append(node("Transpose", [last], out, perm=[1, 0]))
        elif op == "Cast":
            nodes.append(node("Cast", [last], out, to=1))
        elif op == "Reshape":
            initializers.append(init(np.array([-1, OUT]), f"shape{number}"))
            nodes.append(node("Reshape", [last, f"shape{number}"], out))
        else:
            nodes.append(node("Identity", [last], out))
        last = out
    return model([*nodes, node("MatMul", ["x", last], "y")], initializers), floats(2, 3, IN)


def shared(turned: bool) -> Built:
    w = init(weight(IN, IN), "w")
    nodes = [node("MatMul", ["x", "w"], "h")]
    if turned:
        nodes += [node("Transpose", ["w"], "v", perm=[1, 0]), node("MatMul", ["h", "v"], "y")]
    else:
        nodes.append(node("MatMul", ["h", "w"], "y"))
    return model(nodes, [w]), floats(2, 3, IN)


def branches() -> Built:
    """An If whose branches use an outer weight and one of their own."""
    inner = helper.make_graph(
        [node("MatMul", ["x", "w"], "a")], "then", [], [helper.make_tensor_value_info("a", 1, None)]
    )
    own = helper.make_graph(
        [node("MatMul", ["x", "v"], "b")],
        "else",
        [],
        [helper.make_tensor_value_info("b", 1, None)],
        [init(weight(seed=3), "v")],
    )
    nodes = [
        node("ReduceSum", ["x"], "sum", keepdims=0),
        helper.make_node("Constant", [], ["zero"], value=init(np.zeros((), np.float32), "zero")),
        node("Greater", ["sum", "zero"], "positive"),
        helper.make_node("If", ["positive"], ["y"], name="choose", then_branch=inner, else_branch=own),
    ]
    return model(nodes, [init(weight(), "w")]), floats(2, 3, IN)


def loop() -> Built:
    body = helper.make_graph(
        [
            node("Identity", ["going"], "still"),
            helper.make_node("Constant", [], ["w"], name="own", value=init(weight(IN, IN), "w")),
            node("MatMul", ["state", "w"], "after"),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", 7, []),
            helper.make_tensor_value_info("going", 9, []),
            helper.make_tensor_value_info("state", 1, None),
        ],
        [helper.make_tensor_value_info("still", 9, []), helper.make_tensor_value_info("after", 1, None)],
    )
    nodes = [
        helper.make_node("Constant", [], ["times"], value=init(np.array(2), "times")),
        helper.make_node("Constant", [], ["yes"], value=init(np.array(True), "yes")),
        helper.make_node("Loop", ["times", "yes", "x"], ["y"], name="repeat", body=body),
    ]
    return model(nodes, []), floats(2, 3, IN)


def scan() -> Built:
    body = helper.make_graph(
        [
            node("MatMul", ["row", "w"], "out"),
            node("Identity", ["carried"], "kept"),
        ],
        "body",
        [helper.make_tensor_value_info("carried", 1, None), helper.make_tensor_value_info("row", 1, None)],
        [helper.make_tensor_value_info("kept", 1, None), helper.make_tensor_value_info("out", 1, None)],
    )
    nodes = [
        helper.make_node("Constant", [], ["nothing"], value=init(np.zeros(1, np.float32), "nothing")),
        helper.make_node("Scan", ["nothing", "x"], ["last", "y"], name="each", body=body, num_scan_inputs=1),
    ]
    return model(nodes, [init(weight(), "w")]), floats(2, 3, IN)


def argument(weight_name: str = "w") -> Built:
    """A function that gets the weight from its caller."""
    made = helper.make_function(
        "local", "Dense", ["a", "k"], ["b"], [node("MatMul", ["a", "k"], "b")], [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("Dense", ["x", weight_name], ["y"], name="call", domain="local")
    return model([call], [init(weight(), weight_name)], functions=[made]), floats(2, 3, IN)


def function() -> Built:
    inside = [
        helper.make_node("Constant", [], ["w"], name="own", value=init(weight(), "w")),
        node("MatMul", ["a", "w"], "b"),
    ]
    made = helper.make_function("local", "Dense", ["a"], ["b"], inside, [helper.make_opsetid("", 17)])
    call = helper.make_node("Dense", ["x"], ["y"], name="call", domain="local")
    return model([call], [], functions=[made]), floats(2, 3, IN)


def half() -> Built:
    made = model([node("MatMul", ["x", "w"], "y")], [init(weight().astype(np.float16), "w")], kind=10, output=10)
    return made, {"x": floats(2, 3, IN)["x"].astype(np.float16)}


def stacked() -> Built:
    w = np.stack([weight(IN, OUT, seed) for seed in range(3)])
    made = model([node("MatMul", ["x", "w"], "y")], [init(w, "w")], (3, "sequence", IN))
    return made, floats(3, 5, IN)


def einsum(equation: str = "abc,cde->abde") -> Built:
    w = weight(IN, 4 * 6).reshape(IN, 4, 6)
    made = model([node("Einsum", ["x", "w"], "y", equation=equation)], [init(w, "w")])
    return made, floats(2, 3, IN)


def moved_batch() -> Built:
    """As some exporters write a dense layer: three axes made two, a product, a bias, three axes again."""
    nodes = [
        node("Reshape", ["x", "flat"], "rows"),
        node("MatMul", ["rows", "p2o.linear_0.w_0"], "product"),
        node("Add", ["product", "b"], "biased"),
        node("Reshape", ["biased", "back"], "y"),
    ]
    initializers = [
        init(np.array([-1, IN]), "flat"),
        init(np.array([-1, 3, OUT]), "back"),
        init(weight(), "p2o.linear_0.w_0"),
        init(np.ones(OUT, np.float32), "b"),
    ]
    return model(nodes, initializers, ("batch", 3, IN)), floats(2, 3, IN)


GEMMS = {
    f"gemm_{a}{b}{alpha}{beta}{bias}": lambda a=a, b=b, alpha=alpha, beta=beta, bias=bias: gemm(a, b, alpha, beta, bias)
    for a, b, alpha, beta, bias in (
        (0, 0, 1.0, 1.0, True),
        (0, 1, 1.0, 1.0, True),
        (1, 0, 1.0, 1.0, False),
        (1, 1, 0.5, 2.0, True),
        (0, 1, 0.5, 1.0, False),
    )
}
GOOD: dict[str, Callable[[], Built]] = {
    "matmul_right": matmul_right,
    "matmul_left": matmul_left,
    **GEMMS,
    "gemm_opset9": lambda: gemm(1, 0, 2.0, 1.0, True, 9),
    "conv_1x1": lambda: conv((1, 1)),
    "conv_3x3": lambda: conv((3, 3), strides=[2, 1], pads=[1, 0, 1, 2], dilations=[1, 2]),
    "conv_groups": lambda: conv((3, 3), 2, pads=[1, 1, 1, 1]),
    "conv_same": lambda: conv((3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv_1d": lambda: conv((3,), bias=False, strides=[2]),
    "lookup": lookup,
    "tied": lambda: tied(False),
    "tied_copy": lambda: tied(True),
    "constant_node": constant_node,
    "transposed": lambda: through("Transpose"),
    "identity_cast": lambda: through("Cast", "Identity"),
    "reshaped": lambda: through("Reshape"),
    "chain": lambda: through("Identity", "Cast", "Transpose", "Transpose", "Identity"),
    "shared": lambda: shared(False),
    "shared_turned": lambda: shared(True),
    "branches": branches,
    "loop": loop,
    "scan": scan,
    "function": function,
    "half": half,
    "stacked": stacked,
    "einsum": einsum,
    "flattened": moved_batch,
    **{f"opset{n}": lambda n=n: matmul_right(n) for n in (9, 11, 13, 20, 22)},
    "old_ir": lambda: matmul_right(9, 3),
}
