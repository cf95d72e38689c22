"""ONNX graphs as torch modules: the standard's own cases, every architecture, gradients, copies and refusals."""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from architectures import ARCHITECTURES, build
from builders import two_factors
from onnx import helper
from onnx_builders import GOOD, IN, OUT, floats, init, model, node, weight
from torch import Tensor

from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.onnx import OnnxBackend
from lowrank.backends.onnx.vectors import vectors_of
from lowrank.backends.torch import ModuleBackend
from lowrank.backends.torch.graph import GraphModule, module_of_graph
from lowrank.backends.torch.graph.operators import OPERATORS
from lowrank.backends.torch.inputs import as_tensors, call
from lowrank.backends.torch.replicas import replica
from lowrank.errors import UnsupportedModel

TYPES = {"float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"}
"""Torch has no arithmetic in wider integers without a sign, in types of fewer than eight bits, or in strings."""
ROUNDED = {"float16": 1e-2, "bfloat16": 2e-2}
EMPTY = {"test_reduce_max_empty_set", "test_reduce_max_empty_set_bool", "test_reduce_min_empty_set"}
"""Torch has no largest of no numbers."""
REFUSED = {
    *(f"test_averagepool_{kind}" for kind in ("2d_dilations", "3d_dilations_small")),
    *(
        f"test_averagepool_3d_dilations_large_count_include_pad_is_{counted}_ceil_mode_is_{ceil}"
        for counted in (0, 1)
        for ceil in (True, False)
    ),
    *(f"test_batchnorm_{kind}_training_mode" for kind in ("example", "epsilon")),
    *(f"test_maxpool_with_argmax_2d_precomputed_{kind}" for kind in ("pads", "strides")),
    *(f"test_resize_{way}sample_scales_cubic_A_n0p5_exclude_outside" for way in ("up", "down")),
    *(f"test_resize_tf_crop_and_resize{end}" for end in ("", "_extrapolation_value", "_axes_2_3", "_axes_3_2")),
    *(f"test_resize_downsample_{by}_{mode}_antialias" for by in ("scales", "sizes") for mode in ("linear", "cubic")),
    *(f"test_resize_{way}sample_sizes_nearest_not_{end}" for way in ("up", "down") for end in ("larger", "smaller")),
    *(f"test_resize_{way}sample_scales_linear_half_pixel_symmetric" for way in ("up", "down")),
    *(f"test_training_dropout{end}" for end in ("", "_mask", "_default", "_default_mask")),
}
"""Cases of known operators with settings that are refused."""
WITHOUT_CASES = {"SimplifiedLayerNormalization"}
"""ONNX Runtime's own; it is `RMSNormalization` under another name."""


def as_graph(proto: onnx.ModelProto) -> GraphModule:
    return module_of_graph(ir.serde.deserialize_model(proto))


def as_tensor(array: Any) -> Tensor:
    array = np.array(array)
    return (
        torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype.name == "bfloat16"
        else torch.from_numpy(array)
    )


def of_known_types(case: Any) -> bool:
    """Whether torch computes in the types of all that a case reads and gives."""
    given = [np.asarray(array) for inputs, outputs in case.data_sets for array in (*inputs, *outputs)]
    constants = [a.t.data_type for n in case.model.graph.node for a in n.attribute if a.HasField("t")]
    casts = [a.i for n in case.model.graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"]
    names = {helper.tensor_dtype_to_np_dtype(kind).name for kind in (*constants, *casts)}
    return {array.dtype.name for array in given} | names <= TYPES


def difference(case: Any) -> str:
    """What a module gives that a case does not; empty if they agree."""
    module = as_graph(case.model)
    for inputs, outputs in case.data_sets:
        feed = dict(zip(module.plan.inputs, map(as_tensor, inputs), strict=False))
        for made, wanted in zip(module(**feed).values(), map(np.asarray, outputs), strict=True):
            kind = str(made.dtype).removeprefix("torch.")
            found = made.double().numpy()
            if (kind, found.shape) != (wanted.dtype.name, wanted.shape):
                return f"{kind}{found.shape}, not {wanted.dtype.name}{wanted.shape}"
            near = ROUNDED.get(kind, 1e-3)
            if not np.allclose(found, wanted.astype(np.float64), near, max(1e-5, near / 100), equal_nan=True):
                return "other numbers"
    return ""


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    """The standard's own cases in which all operators are known, and all types are torch's."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: list[Any] = list(collect_testcases(""))
    known = {*OPERATORS, ("", "Constant")}
    return [c for c in found if {(n.domain, n.op_type) for n in c.model.graph.node} <= known and of_known_types(c)]


def test_the_cases_of_the_standard(cases: list[Any]) -> None:
    wrong: dict[str, str] = {}
    for case in cases:
        if case.name in REFUSED | EMPTY:
            continue
        try:
            wrong[case.name] = difference(case)
        except Exception as error:
            wrong[case.name] = repr(error)
    assert {name: reason for name, reason in wrong.items() if reason} == {}
    assert len(wrong) > 900
    seen = {n.op_type for case in cases for n in case.model.graph.node}
    assert {name for domain, name in OPERATORS if not domain} - seen == WITHOUT_CASES


def test_the_cases_that_are_refused(cases: list[Any]) -> None:
    by_name = {case.name: case for case in cases}
    assert set(by_name) >= REFUSED
    for name in REFUSED:
        with pytest.raises(UnsupportedModel, match=r"(AveragePool|BatchNormalization|Dropout|MaxPool|Resize) \(node"):
            difference(by_name[name])


def in_runtime(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[Any]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def same_as_in_runtime(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> None:
    made = as_graph(proto)(**{name: torch.from_numpy(array) for name, array in feed.items()})
    for value, wanted in zip(made.values(), in_runtime(proto, feed), strict=True):
        np.testing.assert_allclose(value.detach().numpy(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(GOOD) - {"branches", "loop", "scan"}))
def test_graphs_of_all_exporters(name: str) -> None:
    same_as_in_runtime(*GOOD[name]())


def plain(op: str, opset: int, inputs: int = 1, domain: str = "", **settings: Any) -> onnx.ModelProto:
    """A graph of one node on matrices of 3 x 5."""
    names = ["a", "b", "c"][:inputs]
    made = helper.make_node(op, names, ["y"], domain=domain, **settings)
    values = [helper.make_tensor_value_info(name, 1, [None] * 2) for name in names]
    graph = helper.make_graph([made], "g", values, [helper.make_tensor_value_info("y", 1, None)])
    sets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=sets, ir_version=8)


OLDER = {
    "softmax": plain("Softmax", 11, axis=0),
    "log_softmax": plain("LogSoftmax", 12),
    "reduce_sum": plain("ReduceSum", 12, axes=[1], keepdims=0),
    "reduce_mean": plain("ReduceMean", 17, axes=[-1]),
    "slice": plain("Slice", 9, starts=[1, -3], ends=[3, 100], axes=[0, 1]),
    "split": plain("Split", 12, axis=1, split=[5]),
    "unsqueeze": plain("Unsqueeze", 12, axes=[0, -1]),
    "clip": plain("Clip", 10, min=-0.5, max=0.25),
    "pad": plain("Pad", 10, pads=[1, 0, 0, 2], value=3.0),
    "upsample": plain("Upsample", 7, scales=[2.0, 3.0]),
    "gelu": plain("Gelu", 17, domain="com.microsoft"),
    "quick_gelu": plain("QuickGelu", 17, domain="com.microsoft", alpha=1.7),
    "fast_gelu": plain("FastGelu", 17, domain="com.microsoft"),
}


@pytest.mark.parametrize("name", OLDER)
def test_older_operator_sets_and_those_of_the_runtime(name: str) -> None:
    same_as_in_runtime(OLDER[name], {"a": floats(3, 5)["x"]})


def test_fused_products() -> None:
    proto = plain("FusedMatMul", 17, 2, "com.microsoft", transB=1, alpha=0.5)
    same_as_in_runtime(proto, {"a": floats(3, 5)["x"], "b": floats(4, 5)["x"]})


def graph_of(name: str, path: Path, factored: bool) -> OnnxBackend:
    """An architecture's graph as a file."""
    backend = open_model(build(name))
    assert isinstance(backend, ModuleBackend)
    if factored:
        wanted = [w for w in backend.weights if w.role == "projection" and w.is_linear]
        backend = backend.rewrite({w.name: two_factors(backend.read(w.name), 8) for w in wanted})
    backend.write_onnx(path)
    graph = open_model(str(path))
    assert isinstance(graph, OnnxBackend)
    return graph


@pytest.mark.slow_but("bert-dense", "bert-factored")
@pytest.mark.parametrize(
    ("name", "factored"),
    [pytest.param(n, f, id=f"{n}-{'factored' if f else 'dense'}") for n in ARCHITECTURES for f in (False, True)],
)
def test_architectures(name: str, factored: bool, tmp_path: Path) -> None:
    graph = graph_of(name, tmp_path / "graph.onnx", factored)
    signature = graph.signature
    assert isinstance(signature, Signature)
    module = module_of_graph(graph.model)
    feeds = [signature.example(2, min(9, signature.max_sequence)), signature.example(1, min(5, signature.max_sequence))]
    for feed in feeds:
        made = call(signature, module, feed)
        for key, wanted in graph.outputs(feed).items():
            np.testing.assert_allclose(made[key].detach().numpy(), wanted, rtol=1e-4, atol=1e-4, err_msg=key)
    shown = [value for value in module(**as_tensors(signature, feeds[0])).values() if value.is_floating_point()]
    torch.stack([value.square().sum() for value in shown]).sum().backward()
    without = [module.initializers[k] for k, p in module.named_parameters() if p.dim() > 1 and p.grad is None]
    assert not without


def chain() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A product, a bias, a norm and a nonlinearity, each with numbers of its own."""
    nodes = [
        node("MatMul", ["x", "layer.0/w"], "a"),
        node("Add", ["a", "b"], "c"),
        node("LayerNormalization", ["c", "scale", "b"], "d"),
        node("Pow", ["d", "two"], "e"),
        node("Erf", ["e"], "y"),
    ]
    numbers = [init(weight(), "layer.0/w"), init(np.linspace(-1, 1, OUT).astype(np.float32), "b")]
    numbers += [init(np.ones(OUT, np.float32), "scale"), init(np.array(2, np.float32), "two")]
    return model(nodes, numbers), floats(2, 3, IN)


def test_parameters_are_initializers() -> None:
    proto, _ = chain()
    module = as_graph(proto)
    assert sorted(module.initializers.values()) == ["b", "layer.0/w", "scale"]
    assert set(module.initializers) == {name for name, _ in module.named_parameters()}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for name, parameter in module.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), stored[module.initializers[name]])


def test_gradients_are_those_of_differences() -> None:
    proto, feed = chain()
    module = as_graph(proto).double()
    x = torch.from_numpy(feed["x"]).double()
    names = [name for name, _ in module.named_parameters()]

    def total(*numbers: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, numbers, strict=True)), (x,))["y"].sum()

    numbers = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]
    assert torch.autograd.gradcheck(total, numbers)


def test_gradients_are_those_of_the_model_that_a_graph_was_made_from(tmp_path: Path) -> None:
    backend = open_model(build("bert"))
    assert isinstance(backend, ModuleBackend)
    graph = graph_of("bert", tmp_path / "graph.onnx", factored=False)
    signature, module = graph.signature, module_of_graph(graph.model)
    assert isinstance(signature, Signature)
    feed = signature.example(2, 7)
    for each in (module, backend.module):
        call(signature, each, feed)[signature.output].square().sum().backward()
    known = {name: parameter for name, parameter in module.named_parameters() if parameter.dim() == 2}
    assert len(known) == len([parameter for parameter in backend.module.parameters() if parameter.dim() == 2])
    for name, parameter in known.items():
        own = backend.module.get_parameter(module.initializers[name])
        if own.grad is None:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None
        # A graph holds the matrices of layers transposed, and tables as they are.
        turned = own.shape != parameter.shape or not torch.equal(own, parameter)
        torch.testing.assert_close(parameter.grad, own.grad.T if turned else own.grad, rtol=1e-3, atol=1e-3)


def test_vectors_of_one_layer_are_found() -> None:
    proto, _ = chain()
    # The bias is the shift of the norm as well, and two is a number of a formula.
    assert vectors_of(ir.serde.deserialize_model(proto)) == ["scale"]


def test_copies_and_replicas_in_threads_give_the_same() -> None:
    proto, feed = chain()
    module, x = as_graph(proto), torch.from_numpy(feed["x"])
    copies = [copy.deepcopy(module), replica(module)]
    with torch.no_grad(), ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda each: each(x)["y"], copies)
    wanted = module(x=x)["y"]
    torch.testing.assert_close(one, wanted)
    torch.testing.assert_close(two, wanted)
    first = next(iter(module.initializers))
    assert copies[1].get_parameter(first) is module.get_parameter(first) is not copies[0].get_parameter(first)


def test_values_that_nothing_reads_are_freed() -> None:
    module = as_graph(chain()[0])
    freed = [number for step in module.plan.steps for number in step.done]
    made = {number for step in module.plan.steps for number in (*step.inputs, *step.outputs) if number is not None}
    assert len(freed) == len(set(freed)) and set(freed) == made - set(module.plan.outputs.values())


@pytest.mark.parametrize(
    ("proto", "said"),
    [
        (plain("Det", 17), r"Det \(node y\) is not an operator that is known"),
        (plain("Odd", 17, domain="my.own"), r"Odd of the domain my\.own \(node y\)"),
        (GOOD["branches"]()[0], r"If \(node \w*\) holds graphs of its own"),
        (GOOD["loop"]()[0], r"Loop \(node \w*\) holds graphs of its own"),
    ],
)
def test_an_unknown_operator_is_named(proto: onnx.ModelProto, said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said + ".*; heal the torch model that the graph was exported from"):
        as_graph(proto)
