"""Target: the runtime that a graph is written for, and the type that its weights are stored in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lowrank.errors import ExportError

Profile = Literal["portable", "ort", "qdq", "qdq-signed"]
"""What a graph is for: standard operators; ONNX Runtime, with its own; or engines that want the scales of what they
multiply in eight bits fixed beforehand, in codes without a sign or with one."""

Dtype = Literal["float32", "float16", "int8", "int4", "int3", "int2", "nbits4", "mixed"]
"""What weights are stored in. Integers are also computed with, in eight bits; `nbits4` is what ONNX Runtime has
operators of its own for, `mixed` is as the plan says for each weight."""

DTYPES: dict[str, Dtype] = {
    "none": "float32",
    "fp16": "float16",
    "int8": "int8",
    "int4": "int4",
    "int3": "int3",
    "int2": "int2",
    "nbits4": "nbits4",
}
"""What `--quantize` may ask for."""


ENGINES: dict[str, Profile] = {
    "onnxruntime": "ort",
    "openvino": "qdq",
    "web": "portable",
    "tensorrt": "qdq-signed",
    "qnn": "qdq",
}
"""The profile for each engine that `--for` names: see the table in docs/edge.md."""


def export_command(dtype: str) -> str:
    """What one types for the graph of a dense model in a type."""
    option = next((name for name, known in DTYPES.items() if known == dtype), dtype)
    return f"`lowrank export MODEL -o FOLDER --quantize {option}`"


OLDEST = (1, 22, 1)
"""ONNX Runtime before it gives wrong numbers for fused attention on padded batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What graphs are written for."""

    profile: Profile = "portable"
    dtype: Dtype = "float32"

    @property
    def is_fixed(self) -> bool:
        """Whether what products read is rounded to ranges that calibration data had."""
        return self.profile in ("qdq", "qdq-signed")

    @property
    def without_data(self) -> Target:
        """The same with what products read rounded to the range of each run, which needs no calibration data."""
        return replace(self, profile="portable") if self.is_fixed else self

    @property
    def is_signed(self) -> bool:
        """Whether those ranges have their zero in the middle."""
        return self.profile == "qdq-signed"

    @property
    def is_rounded(self) -> bool:
        """Whether what is written gives other numbers than the model."""
        return self.dtype != "float32"

    def check(self) -> None:
        """Check that the runtime here can run what is written.

        Raises:
            ExportError: with what to ask for instead.
        """
        if self.profile != "ort":
            if self.dtype == "nbits4":
                raise ExportError(
                    f"nbits4 is operators of ONNX Runtime, which --profile {self.profile} leaves out; use --profile "
                    "ort, or --quantize int4"
                )
            return
        import onnxruntime

        installed = tuple(int(part) for part in onnxruntime.__version__.split(".")[:3] if part.isdigit())
        if installed < OLDEST:
            raise ExportError(
                f"--profile ort is for onnxruntime {'.'.join(map(str, OLDEST))} and later, and here is "
                f"{onnxruntime.__version__}, which gives wrong numbers for padded batches; use --profile portable"
            )
