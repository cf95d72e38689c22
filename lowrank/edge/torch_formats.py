"""Files that torch's own exporter leads to: an exported program, and what ExecuTorch and LiteRT make of one.

Each is made from the factored module itself, in float32, and read back by the runtime that it is for. What a format
needs beside torch is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.base import Outputs
from lowrank.backends.inputs import Feed, Input, Signature
from lowrank.backends.quiet import hushed
from lowrank.backends.torch.export import ByPosition, exporting
from lowrank.backends.torch.inputs import as_tensors, call, in_float32
from lowrank.backends.torch.module import as_array
from lowrank.backends.torch.tensors import module_in_float32
from lowrank.errors import ExportError, first_line

Run = Callable[[Feed], Outputs]
"""Runs a file on a batch."""
Sizes = tuple[tuple[int, int], ...]
"""Batches and sequence lengths."""
SEQUENCE = 128
"""Tokens that a file of a fixed shape takes, where the model takes as many."""


@dataclass(frozen=True)
class TorchFormat:
    """A kind of file, how it is written, and how it is run."""

    file: str
    package: str
    """What it needs beside torch; empty for nothing."""
    write: Callable[[nn.Module, Signature, Path], None]
    open: Callable[[Path, Signature], Run]
    sizes: Callable[[Signature], Sizes]
    """What it can be run at."""
    shapes: Callable[[Signature], str]
    """What shapes it takes, in words."""

    def check(self) -> None:
        """Look for what it needs.

        Raises:
            ExportError: if that is not installed.
        """
        name = self.package.replace("-", "_")
        try:
            if name:
                with _silent():
                    importlib.import_module(name)
        except ImportError as error:
            raise ExportError(
                f"{self.file} is made by the package {self.package}, which is not there ({first_line(error)}); "
                f"pip install {self.package}"
            ) from None

    def save(self, module: nn.Module, signature: Signature, path: Path) -> Run:
        """Write a module, and open what was written.

        Args:
            module: in evaluation mode.
            signature: how it is fed.
            path: the file.

        Returns:
            What runs it.

        Raises:
            ExportError: if it cannot be written or opened.
        """
        module, signature = module_in_float32(module).eval(), in_float32(signature)
        try:
            with _silent():
                self.write(module, signature, path)
                return self.open(path, signature)
        except Exception as error:
            # Whatever an exporter ends with.
            raise ExportError(
                f"{type(module).__name__} cannot be written as {path.name}: {first_line(error)}; the factored model "
                "itself is complete and loads with lowrank.load"
            ) from error


def _named(module: nn.Module, signature: Signature) -> nn.Module:
    """A module that takes what this one takes, in the same way, and gives its outputs by name.

    The exporter asks for names that `**kwargs` would not have, so the class is made for the signature.
    """

    def forward(self: Any, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        given = dict(zip(signature.names[: signature.positional], args, strict=True))
        return call(signature, self.module, {**given, **kwargs})

    names = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("self", *signature.names)]
    # Set by its name, as functions declare no such attribute.
    vars(forward)["__signature__"] = inspect.Signature(names)
    wrapped = type("Named", (nn.Module,), {"forward": forward})()
    wrapped.module = module
    return wrapped.eval()


def _write_program(module: nn.Module, signature: Signature, path: Path) -> None:
    args, kwargs = _called(signature, as_tensors(signature, signature.example(2, 6)))
    shapes = {spec.name: {i: torch.export.Dim.DYNAMIC for i, _ in _open(spec)} for spec in signature.inputs}
    with exporting(module, plain=False):
        program = torch.export.export(_named(module, signature), args, kwargs, dynamic_shapes=shapes)
    torch.export.save(program, path)


def _open_program(path: Path, signature: Signature) -> Run:
    module = torch.export.load(path).module()

    def run(feed: Feed) -> Outputs:
        args, kwargs = _called(signature, as_tensors(signature, feed))
        with torch.no_grad():
            return {name: as_array(output) for name, output in module(*args, **kwargs).items()}

    return run


def _write_executorch(module: nn.Module, signature: Signature, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (  # pyright: ignore[reportMissingImports]
        XnnpackPartitioner,
    )
    from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]

    # Memory is planned ahead, for the largest input.
    several = torch.export.Dim.DYNAMIC(min=1, max=signature.max_sequence)
    dims = tuple({i: several for i, name in _open(spec) if name != "batch"} for spec in signature.inputs)
    example = tuple(as_tensors(signature, signature.example(1, 6)).values())
    with exporting(module):
        program = torch.export.export(ByPosition(module, signature).eval(), example, dynamic_shapes=(dims,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


def _open_executorch(path: Path, signature: Signature) -> Run:
    from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")

    def run(feed: Feed) -> Outputs:
        with hushed():
            outputs = method.execute(list(as_tensors(signature, feed).values()))
        return {name: as_array(value) for name, value in zip(signature.output_names, outputs, strict=True)}

    return run


def _write_litert(module: nn.Module, signature: Signature, path: Path) -> None:
    import litert_torch  # pyright: ignore[reportMissingImports]

    example = tuple(as_tensors(signature, signature.example(1, _fixed(signature))).values())
    with exporting(module):
        litert_torch.convert(ByPosition(module, signature).eval(), example).export(str(path))


def _open_litert(path: Path, signature: Signature) -> Run:
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    interpreter: Any = Interpreter(model_path=str(path))
    runner = interpreter.get_signature_runner()
    inputs = runner.get_input_details()

    def number(name: str) -> int:
        return int(name.rpartition("_")[2])

    def run(feed: Feed) -> Outputs:
        places = sorted(inputs, key=number)
        given = {
            place: np.asarray(feed[name], inputs[place]["dtype"])
            for place, name in zip(places, signature.names, strict=True)
        }
        outputs: Mapping[str, Any] = runner(**given)
        ordered = sorted(outputs, key=number)
        return {name: np.asarray(outputs[o]) for name, o in zip(signature.output_names, ordered, strict=True)}

    return run


def _called(signature: Signature, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What is given by place, and what by name."""
    names = signature.names
    return tuple(values[n] for n in names[: signature.positional]), {
        n: values[n] for n in names[signature.positional :]
    }


def _open(spec: Input) -> Iterator[tuple[int, str]]:
    """The axes of an input that may have any size, with their names."""
    return ((i, dim) for i, dim in enumerate(spec.dims) if isinstance(dim, str))


def _fixed(signature: Signature) -> int:
    return min(SEQUENCE, signature.max_sequence)


@contextmanager
def _silent() -> Iterator[None]:
    with hushed(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def _up_to(signature: Signature) -> str:
    return f"one sample{f' of up to {signature.max_sequence} tokens' if signature.has_sequence else ''}"


def _just(signature: Signature) -> str:
    return (
        f"one sample{f' of {_fixed(signature)} tokens, padded where it is shorter' if signature.has_sequence else ''}"
    )


TORCH_FORMATS: dict[str, TorchFormat] = {
    "pt2": TorchFormat(
        "model.pt2",
        "",
        _write_program,
        _open_program,
        lambda _: ((1, 1), (1, 16), (3, 9), (4, 33)),
        lambda _: "any batch and length",
    ),
    "executorch": TorchFormat(
        "model.pte",
        "executorch",
        _write_executorch,
        _open_executorch,
        lambda _: ((1, 1), (1, 16), (1, 33)),
        _up_to,
    ),
    "litert": TorchFormat(
        "model.tflite",
        "litert-torch",
        _write_litert,
        _open_litert,
        lambda signature: ((1, _fixed(signature)),),
        _just,
    ),
}
"""By the name that `lowrank export --to` takes."""
