"""A graph as it is used, not as it was trained: what an export in training mode leaves in it is switched off."""

from __future__ import annotations

from typing import Any

from lowrank.backends.onnx.constants import nodes_of, tensor_of

TRAINING = 2
"""The input of a Dropout that says whether it drops anything."""
STATISTICS = (3, 4)
"""The inputs of a BatchNormalization that hold the mean and the variance of training."""
DRAWN = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)
"""Operators that give other numbers at every run."""


def as_used(model: Any) -> tuple[str, ...]:
    """Make every Dropout the identity and let every BatchNormalization use the statistics of training.

    Nodes whose mode is a constant `true`, an input or something computed are changed; others stay as they are.

    Args:
        model: an `onnx_ir.Model`, changed in place where that is needed.

    Returns:
        What was changed, and what cannot be, as notes.
    """
    standard = [node for node in nodes_of(model) if node.domain in ("", "ai.onnx")]
    dropouts = [node for node in standard if node.op_type == "Dropout" and _may_drop(node)]
    norms = [node for node in standard if node.op_type == "BatchNormalization" and _takes_statistics(node)]
    for node in dropouts:
        node.replace_input_with(TRAINING, None)
    settled = [node for node in norms if _settle(node)]
    notes = list[str]()
    if dropouts or settled:
        parts = [(dropouts, "Dropout is the identity"), (settled, "BatchNormalization uses its stored statistics")]
        what = ", ".join(f"{len(nodes)} x {change}" for nodes, change in parts if nodes)
        notes.append(
            f"the graph was exported in training mode; it is run and written as it is used: {what}. Call model.eval() "
            "before exporting"
        )
    if len(settled) < len(norms):
        left = next(node for node in norms if node not in settled)
        notes.append(
            f"{left.op_type} {left.name} gives its new statistics as outputs of the graph, so it stays in training "
            "mode and depends on the batch; export the model after model.eval()"
        )
    drawn = [node for node in standard if node.op_type in DRAWN]
    if drawn:
        notes.append(
            f"{drawn[0].op_type} {drawn[0].name} gives other numbers at every run ({len(drawn)} such nodes), and so "
            "may the graph, which errors count too; for dropout or stochastic depth, call model.eval() before exporting"
        )
    return tuple(notes)


def _may_drop(node: Any) -> bool:
    if len(node.inputs) <= TRAINING or node.inputs[TRAINING] is None:
        return False
    mode = tensor_of(node.inputs[TRAINING])
    return mode is None or bool(mode.numpy().any())


def _takes_statistics(node: Any) -> bool:
    mode = node.attributes.get("training_mode")
    return mode is not None and bool(mode.value)


def _settle(node: Any) -> bool:
    """Take a BatchNormalization out of training mode; whether that was possible."""
    import onnx_ir as ir

    new = node.outputs[1:]
    if any(value.is_graph_output() for value in new):
        return False
    ir.convenience.replace_all_uses_with(new, [node.inputs[at] for at in STATISTICS[: len(new)]])
    node.resize_outputs(1)
    node.attributes.pop("training_mode")
    return True
