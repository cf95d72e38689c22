"""A torch module as an ONNX file that plain ONNX Runtime runs, with the batch and the sequence left open."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Signature
from lowrank.backends.onnx.opset import IR_VERSION, OPSET
from lowrank.backends.onnx.passes import AFTER_TRACE
from lowrank.backends.onnx.passes.tidy import name_initializers
from lowrank.backends.onnx.save import save_model
from lowrank.backends.quiet import hushed
from lowrank.backends.torch.inputs import as_tensors, call, in_float32
from lowrank.backends.torch.normalize import experts_as
from lowrank.backends.torch.tensors import module_in_float32
from lowrank.errors import ExportError, first_line


def export_onnx(module: nn.Module, signature: Signature, path: Path, opset: int = OPSET) -> None:
    """Write `path` (and `path.data` for a large model).

    A low-rank layer becomes `Add(MatMul(MatMul(x, A), B), bias)`. Attention is exported in its plain form, which
    gives the smallest graph; numbers are float32 whatever the module's are.

    Raises:
        ExportError: if the exporter cannot trace the module; the message carries its reason.
    """
    save_model(export_graph(module, signature, opset), path)


def export_graph(module: nn.Module, signature: Signature, opset: int = OPSET) -> Any:
    """What `export_onnx` writes, as an `onnx_ir.Model`."""
    module, signature = module_in_float32(module), in_float32(signature)
    wrapped = ByPosition(module, signature).eval()
    # Sizes that no dimension of a model is likely to share by chance; the exporter keeps the names.
    example = tuple(as_tensors(signature, signature.example(2, 6)).values())
    dynamic = tuple({i: d for i, d in enumerate(spec.dims) if isinstance(d, str)} for spec in signature.inputs)
    return trace(wrapped, example, (dynamic,), signature.names, signature.output_names, opset)


def trace(
    wrapped: nn.Module,
    example: tuple[Any, ...],
    dynamic: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
) -> Any:
    """The graph of a wrapper, as an `onnx_ir.Model` in the form that readers expect.

    Args:
        wrapped: holds the module to export as `module`.
        example: what to call it with.
        dynamic: which axes stay open.
        inputs: what to call them.
        outputs: what to call what it gives.
        opset: the operator set.

    Raises:
        ExportError: if the exporter cannot trace it.
    """
    module: Any = wrapped.module
    try:
        with exporting(module):
            program = torch.onnx.export(
                wrapped,
                example,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=dynamic,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"torch.onnx.export could not trace {type(module).__name__}: {first_line(_root(error))}; the factored "
            "model itself is complete and loads with lowrank.load"
        ) from error
    assert program is not None
    for change in AFTER_TRACE:
        change(program.model)
    name_initializers(program.model, wrapped, prefix="module.")
    program.model.ir_version = min(program.model.ir_version, IR_VERSION)
    return program.model


@contextlib.contextmanager
def exporting(module: nn.Module, plain: bool = True) -> Iterator[None]:
    """Forms that can be traced, and no chatter.

    Args:
        module: what is exported.
        plain: whether attention is in its plain form, too, and not in the one that torch has a kernel for.
    """
    attention = _plain_attention(module) if plain else contextlib.nullcontext()
    with hushed(), attention, experts_as(module, "batched_mm"), torch.no_grad():
        yield


class ByPosition(nn.Module):
    """Tensors out for tensors in, in the signature's order."""

    def __init__(self, module: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.module = module
        self.signature = signature

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """All outputs, in the signature's order."""
        named: Mapping[str, Tensor] = dict(zip(self.signature.names, values, strict=True))
        return tuple(call(self.signature, self.module, named).values())


@contextlib.contextmanager
def _plain_attention(module: nn.Module) -> Iterator[None]:
    """Eager attention in a transformers model: the fused form decomposes into guards that runtimes do not fuse."""
    config: Any = getattr(module, "config", None)
    switch = getattr(module, "set_attn_implementation", None)
    before = getattr(config, "_attn_implementation", None)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    if switch is not None and before is not None:
        switch("eager")
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if switch is not None and before is not None:
            switch(before)


def _root(error: BaseException) -> BaseException:
    """The first cause: the exporter wraps it in several layers of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
