"""ONNX Runtime's own file format, for builds that hold no more than a model needs."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.backends.onnx.save import file_size
from lowrank.backends.ort_session import start_session
from lowrank.backends.quiet import hushed
from lowrank.errors import ExportError, first_line

SUFFIXES = (".ort", ".required_operators_and_types.config")
"""Of the file, and of the list that `build.sh --minimal_build --include_ops_by_config` takes."""
TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest output."""
LARGEST = 2**31 - 1
"""Bytes: the format has no file for numbers beside it."""


def write_ort(graph: Path, folder: Path) -> list[Path]:
    """Write a graph, optimised, as `.ort`, and the operators and types that it needs.

    The list is made from the file itself, since optimising brings in operators that the graph does not show. What the
    runtime computes once when it loads a graph is in the file as it comes out: four bits as eight.

    Args:
        graph: an ONNX file, with the numbers beside it if it has some.
        folder: for the two files.

    Returns:
        Both.

    Raises:
        ExportError: if it cannot be converted, or gives something else then.
    """
    try:
        from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort
    except ImportError as error:
        raise ExportError(f"this onnxruntime has no converter to its own format ({error})") from None
    with tempfile.TemporaryDirectory() as place:
        try:
            with hushed():
                convert_onnx_models_to_ort(graph, Path(place), [OptimizationStyle.Fixed], enable_type_reduction=True)
        except Exception as error:
            # Whatever the runtime or its tool ends with.
            large = file_size(graph) > LARGEST
            why = "it is larger than 2 GB, and that format has no external data" if large else first_line(error)
            raise ExportError(f"{graph} cannot be written as .ort: {why}") from None
        files = [Path(place) / f"{graph.stem}{suffix}" for suffix in SUFFIXES]
        _check(graph, files[0])
        # The temporary folder's path is left out.
        files[1].write_text(files[1].read_text(encoding="utf-8").replace(f"{Path(place).resolve()}/", ""), "utf-8")
        return [Path(shutil.copyfile(path, folder / path.name)) for path in files]


def _check(graph: Path, converted: Path) -> None:
    """Check that both files give the same outputs for the same inputs."""
    before, after = start_session(graph), start_session(converted)
    feed = {spec.name: _example(spec) for spec in before.get_inputs()}
    names = [spec.name for spec in before.get_outputs()]
    for name, *pair in zip(names, before.run(None, feed), after.run(None, feed), strict=True):
        wanted, output = (np.asarray(each, np.float64) for each in pair)
        difference = float(np.abs(wanted - output).max(initial=0.0))
        if not difference <= TOLERANCE * max(float(np.abs(wanted).max(initial=0.0)), 1e-6):
            raise ExportError(f"{converted.name} gives another {name} than {graph.name}, by {difference:.1e}")


def _example(spec: Any) -> Any:
    """Something that an input may be: masks all set, ids the first one, numbers at random."""
    shape = [size if isinstance(size, int) else 2 for size in spec.shape]
    if "int" in spec.type or "bool" in spec.type:
        kind = np.int32 if "int32" in spec.type else np.bool_ if "bool" in spec.type else np.int64
        return np.full(shape, "mask" in spec.name, kind)
    kind = np.float16 if "float16" in spec.type else np.float32
    return np.random.default_rng(0).standard_normal(shape).astype(kind)
