"""A module that computes what an ONNX graph computes, operator by operator, with its initializers as parameters."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.onnx.constants import tensor_of
from lowrank.backends.torch.graph.operators import OPERATORS, REFUSALS, NodeFacts, Operator
from lowrank.backends.torch.graph.operators.node import TYPES
from lowrank.errors import UnsupportedModel, first_line

STANDARD = ("", "ai.onnx")
REMEDY = "heal the torch model that the graph was exported from, or export it with plain operators"


@dataclass(frozen=True, slots=True)
class Step:
    """One node: what it computes, and which values it reads and gives, each by its number."""

    facts: NodeFacts
    operator: Operator
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    """None for each that nothing reads."""
    done: tuple[int, ...]
    """Values that nothing reads any more after it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a graph computes, without its numbers; values go by number, and inputs and outputs by name."""

    inputs: Mapping[str, int]
    stored: Mapping[str, int]
    """By the name of the parameter or buffer."""
    steps: tuple[Step, ...]
    outputs: Mapping[str, int]

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """Itself, as nothing in it changes: copies of a module have numbers of their own, and one plan."""
        return self


class GraphModule(nn.Module):
    """What an ONNX graph computes; it takes its inputs and gives its outputs by name."""

    def __init__(self, plan: Plan, numbers: Mapping[str, Tensor], initializers: Mapping[str, str]) -> None:
        """Take the stored tensors as they are.

        Args:
            plan: what is computed.
            numbers: the stored tensors by the names in the plan.
            initializers: which of them are parameters, and the names of these in the graph.
        """
        super().__init__()
        self.plan = plan
        self.initializers = dict(initializers)
        for name, tensor in numbers.items():
            if name in initializers:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def forward(self, /, *given: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """The outputs by name.

        Args:
            given: inputs in the graph's order.
            named: the other inputs by name.

        Raises:
            KeyError: if an input is lacking.
        """
        plan = self.plan
        fed = {**dict(zip(plan.inputs, given, strict=False)), **named}
        values = {number: fed[name] for name, number in plan.inputs.items()}
        values |= {number: getattr(self, name) for name, number in plan.stored.items()}
        for step in plan.steps:
            made = step.operator(step.facts, *(None if n is None else values[n] for n in step.inputs))
            for number, value in zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=False):
                if number is not None:
                    values[number] = value
            for number in step.done:
                del values[number]
        return {name: values[number] for name, number in plan.outputs.items()}


def module_of_graph(model: Any, trained: Collection[str] | None = None) -> GraphModule:
    """A module in evaluation mode that computes what a graph computes.

    Its parameters are the graph's float32 initializers. Constants in nodes, integers, single numbers without an axis
    (the exponents and epsilons of formulas) and masks with infinities are buffers.

    Args:
        model: an `onnx_ir.Model`; it is not changed, and shares no numbers with the module.
        trained: the names of the initializers that are to be parameters; all that can be, if not given.

    Raises:
        UnsupportedModel: if an operator of it cannot be computed in torch; the message names it.
    """
    graph, plan = _planned(model)
    tensors, initializers = dict[str, Tensor](), dict[str, str]()
    for name, value in zip(plan.stored, _stored(graph), strict=True):
        tensors[name] = _tensor(value)
        chosen = trained is None or value.name in trained
        if chosen and value.producer() is None and _is_trainable(tensors[name]):
            initializers[name] = value.name
    return GraphModule(plan, tensors, initializers).eval()


def check_operators(model: Any) -> None:
    """Check that torch computes all operators of a graph here.

    Args:
        model: an `onnx_ir.Model`.

    Raises:
        UnsupportedModel: if not; the message names the operator.
    """
    _planned(model)


def _planned(model: Any) -> tuple[Any, Plan]:
    """What a graph computes, and the graph with its local functions inlined.

    Raises:
        UnsupportedModel: if an operator of it cannot be computed in torch.
    """
    graph, versions = _inlined(model)
    numbers: dict[int, int] = {}

    def number_of(value: Any) -> int:
        return numbers.setdefault(id(value), len(numbers))

    stored = {f"{i}:{str(v.name).replace('.', '/')}": number_of(v) for i, v in enumerate(_stored(graph))}
    inputs = {value.name: number_of(value) for value in graph.inputs if not value.is_initializer()}
    outputs = {value.name: number_of(value) for value in graph.outputs}
    read = {number_of(value) for node in graph for value in node.inputs if value is not None} | set(outputs.values())
    steps = [
        _step(node, versions, number_of, read)
        for node in graph
        if not (node.op_type == "Constant" and node.domain in STANDARD)
    ]
    return graph, Plan(inputs, stored, _with_ends(steps, set(outputs.values())), outputs)


def _inlined(model: Any) -> tuple[Any, dict[str, int]]:
    """The main graph with its local functions in the places of their calls, and the versions of operator sets.

    Raises:
        UnsupportedModel: if they cannot be put there.
    """
    if model.functions:
        from onnx_ir.passes.common import InlinePass

        copied = model.clone()
        try:
            model = InlinePass()(copied).model
        except Exception as error:
            raise UnsupportedModel(
                f"the graph's local functions cannot be inlined ({first_line(error)}), so it cannot be differentiated; "
                f"{REMEDY}"
            ) from None
    return model.graph, dict(model.opset_imports)


def _stored(graph: Any) -> list[Any]:
    """The values of all stored tensors: initializers, and the outputs of Constant nodes."""
    constants = [node.outputs[0] for node in graph if node.op_type == "Constant" and node.domain in STANDARD]
    return [*graph.initializers.values(), *constants]


def _tensor(value: Any) -> Tensor:
    """A stored tensor as one of torch.

    Raises:
        UnsupportedModel: if it is of a type that torch does not compute in.
    """
    stored = tensor_of(value)
    if stored is not None:
        return _copied(stored, value.name)
    node = value.producer()
    kind, attribute = (None, None) if node is None else next(iter(node.attributes.items()), (None, None))
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if kind not in dtypes or attribute is None:
        raise UnsupportedModel(f"the graph's constant {value.name} holds no numbers ({kind}); {REMEDY}")
    return torch.from_numpy(np.array(attribute.value, dtypes[kind]))


def _copied(tensor: Any, name: str) -> Tensor:
    """A tensor of a graph in memory of torch's own."""
    dtype = TYPES.get(int(tensor.dtype))
    if dtype is None:
        raise UnsupportedModel(f"the graph's tensor {name} is of the type {tensor.dtype.name}; {REMEDY}")
    array = np.array(tensor.numpy(), order="C")
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _is_trainable(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.dim() > 0 and bool(torch.isfinite(tensor).all())


def _step(node: Any, versions: Mapping[str, int], number_of: Any, read: set[int]) -> Step:
    """One node as a step.

    Raises:
        UnsupportedModel: if torch does not compute it.
    """
    domain = "" if node.domain in STANDARD else node.domain
    outputs = list(node.outputs)
    while outputs and not outputs[-1].name:
        outputs.pop()
    name = str(node.name or (outputs[0].name if outputs else ""))
    attributes, graphs = dict[str, Any](), False
    for key, attribute in node.attributes.items():
        graphs = graphs or attribute.type.name in ("GRAPH", "GRAPHS")
        value = attribute.value
        attributes[key] = _copied(value, f"{name}.{key}") if attribute.type.name == "TENSOR" else value
    version = versions.get(domain, versions.get("ai.onnx", 0) if not domain else 1)
    facts = NodeFacts(node.op_type, domain, name, attributes, int(version), len(outputs))
    key = (domain, node.op_type)
    if graphs:
        raise _unknown(facts, "holds graphs of its own, which are run or not as the data say")
    if key not in OPERATORS:
        raise _unknown(facts, "is not an operator that is known in torch here")
    if reason := REFUSALS[key](facts) if key in REFUSALS else None:
        raise _unknown(facts, reason)
    inputs = tuple(None if value is None else number_of(value) for value in node.inputs)
    given = tuple(number if (number := number_of(value)) in read else None for value in outputs)
    return Step(facts, OPERATORS[key], inputs, given, ())


def _unknown(facts: NodeFacts, reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"the graph cannot be differentiated: {facts} {reason}; {REMEDY}")


def _with_ends(steps: Sequence[Step], kept: set[int]) -> tuple[Step, ...]:
    """The steps, each with the values that nothing reads after it."""
    ended: list[Step] = []
    known = set(kept)
    for step in reversed(steps):
        done = {number for number in (*step.inputs, *step.outputs) if number is not None} - known
        known |= done
        ended.append(Step(step.facts, step.operator, step.inputs, step.outputs, tuple(sorted(done))))
    return tuple(reversed(ended))
