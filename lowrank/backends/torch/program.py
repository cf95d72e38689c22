"""Exported programs (`.pt2`): unflattened into modules whose linear layers are `nn.Linear` again, and back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.backends.inputs import Signature
from lowrank.backends.torch.inputs import as_tensors
from lowrank.errors import ExportError, first_line

PROGRAM_FILE = "model.pt2"


def unflatten(program: torch.export.ExportedProgram) -> nn.Module:
    """The program as a tree of modules under their original names.

    `torch.export.unflatten` gives each module the piece of graph that it ran. A piece that is nothing but one
    `aten.linear` of the module's own weight becomes an `nn.Linear` that holds the same parameters.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = torch.export.unflatten(program)
    for path, module in list(root.named_modules()):
        parameters = dict(module.named_parameters(recurse=False))
        if path and "weight" in parameters and _is_one_linear(module):
            parent, _, child = path.rpartition(".")
            root.get_submodule(parent)._modules[child] = _as_linear(parameters)
    return root


MODES = {
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "native_dropout"), 2),
    **dict.fromkeys(("batch_norm", "native_batch_norm", "_native_batch_norm_legit"), 5),
    "_native_batch_norm_legit_functional": 5,
}
"""Operators of aten that do something else in training, and which argument tells them to."""


def set_as_used_(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Make every dropout the identity, and let norms use the statistics of training; a note if anything was changed."""
    changed = 0
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        at = MODES.get(schema.name.removeprefix("aten::")) if schema is not None else None
        if at is not None and len(node.args) > at and node.args[at] is True:
            node.update_arg(at, False)
            changed += 1
    if not changed:
        return ()
    return (
        "the program was exported in training mode; it is run and written as it is used, without dropout and with the "
        f"stored statistics of norms ({changed} operators). Call model.eval() before exporting",
    )


def _is_one_linear(module: nn.Module) -> bool:
    graph = getattr(module, "graph", None)
    if graph is None:
        return False
    calls = [node for node in graph.nodes if node.op in ("call_function", "call_module", "call_method")]
    if len(calls) != 1 or calls[0].target is not torch.ops.aten.linear.default:
        return False
    sources = [getattr(argument, "op", None) for argument in calls[0].args]
    targets = [getattr(argument, "target", None) for argument in calls[0].args]
    return sources[0] == "placeholder" and targets[1:] in (["weight"], ["weight", "bias"])


def _as_linear(parameters: dict[str, nn.Parameter]) -> nn.Linear:
    weight = parameters["weight"]
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in parameters, device="meta")
    linear.weight = weight
    if "bias" in parameters:
        linear.bias = parameters["bias"]
    return linear.eval()


def export_program(module: nn.Module, signature: Signature) -> torch.export.ExportedProgram:
    """The module as an exported program, open in the dimensions that the signature leaves open."""
    values = as_tensors(signature, signature.example(2, 6))
    names = signature.names
    positional, named = names[: signature.positional], names[signature.positional :]
    open_dims: dict[str, Any] = {
        spec.name: {i: torch.export.Dim.AUTO for i, d in enumerate(spec.dims) if isinstance(d, str)}
        for spec in signature.inputs
    }
    shapes: dict[str, Any] = {"args": tuple(open_dims[name] for name in positional)} if positional else {}
    shapes |= {"kwargs": {name: open_dims[name] for name in named}} if named else {}
    args, kwargs = tuple(values[name] for name in positional), {name: values[name] for name in named}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(_AnyCall(module), args, kwargs, dynamic_shapes=shapes)


PREFIX = "module."
"""Before the names of what `_AnyCall` holds, in a saved program."""


class _AnyCall(nn.Module):
    """Gives the exporter one signature whatever the module's own looks like."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def save_program(module: nn.Module, signature: Signature, folder: Path) -> None:
    """Write `model.pt2`.

    Raises:
        ExportError: if torch cannot export the rewritten module again.
    """
    try:
        program = export_program(module, signature)
    except Exception as error:
        raise ExportError(
            f"torch.export could not trace the rewritten program ({first_line(error)}); give the model as a state "
            "dict with --arch instead"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, folder / PROGRAM_FILE)
