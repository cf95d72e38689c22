"""What graphs are called in a folder in the layout of the Hub: a stem, and for each type a suffix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowrank.edge.target import Dtype, Target

GRAPHS = "onnx"
"""The folder that they are in."""
STEM = "model"
SUFFIXES: dict[str, tuple[str, ...]] = {
    "float32": ("",),
    "float16": ("_fp16",),
    # A browser asks for `quantized` if nothing is said.
    "int8": ("_int8", "_quantized"),
    "int4": ("_q4",),
    "nbits4": ("_q4",),
    "int3": ("_quantized",),
    "int2": ("_quantized",),
    "mixed": ("_quantized",),
}
"""By the type of weights, what transformers.js appends to the name of a graph."""


def names_of(dtype: str, stem: str = STEM) -> list[str]:
    """The names that a graph has with weights in a type.

    Example:
        >>> names_of("int8", "encoder_model")
        ['encoder_model_int8', 'encoder_model_quantized']
    """
    return [f"{stem}{suffix}" for suffix in SUFFIXES[dtype]]


def named(graph: Path, place: Path, dtype: str, stem: str = STEM) -> list[Path]:
    """A graph under the names that its type has in a folder and no other has taken, with its numbers in
    `NAME.onnx_data` if they are beside it."""
    from lowrank.backends.onnx.save import renamed

    free = [path for name in names_of(dtype, stem) if not (path := place / f"{name}.onnx").exists()]
    return [renamed(graph, path, "_data") for path in free]


def left_out(dtype: str, stem: str = STEM) -> str:
    """A remark, where all names of a type are taken."""
    return f"{dtype} is left out: {' and '.join(names_of(dtype, stem))} is there in another type"


def others(target: Target, dtypes: Sequence[Dtype]) -> list[Dtype]:
    """The rounded types that are asked for beside that of a run's own graph."""
    return [dtype for dtype in dict.fromkeys(dtypes) if dtype not in ("float32", target.dtype)]
