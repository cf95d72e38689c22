"""One file of numbers for many sizes: graphs that read the first rows of the same factors.

Factors are nested: those of a smaller rank are the first columns of one and the first rows of the other. Stored by
rank, that is row by row, a smaller factor is a shorter stretch of the file from the same place on. So each size is a
small graph with lengths of its own over one file, and gives bit for bit what a file of its own would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.backends.onnx.describe import describe
from lowrank.backends.onnx.edit import add, constant
from lowrank.backends.onnx.save import PAGE, in_file, load_whole, save_model

SHARED = 1024
"""Bytes below which a tensor stays in its graph."""


def store_by_rank(path: Path) -> None:
    """Store the first of two factors transposed, rank first; the runtime turns it when it loads the graph."""
    model = load_whole(path)
    _turn_first_factors(model)
    save_model(model, path)


def _turn_first_factors(model: Any) -> None:
    for uses in describe(model).uses.values():
        node = uses[0].site.node
        if node.op_type != "MatMul" or uses[0].site.at != 1:
            continue
        value = node.inputs[1]
        readers = [use.node for use in node.outputs[0].uses()]
        inner = bool(readers) and all(n.op_type == "MatMul" and n.inputs[0] is node.outputs[0] for n in readers)
        alone = len(uses) == 1 and value.name in model.graph.initializers and len(value.uses()) == 1
        if not (inner and alone):
            continue
        numbers = value.const_value.numpy()
        model.graph.initializers.pop(value.name)
        turned = constant(model.graph, value.name, np.ascontiguousarray(numbers.T))
        turn = add(node, "Transpose", [turned], part="by_rank", perm=[1, 0])
        node.replace_input_with(1, turn.outputs[0])


def share(paths: Sequence[Path], data: Path) -> None:
    """Let several graphs in one folder read one file of numbers.

    A tensor whose numbers are the beginning of a larger one's is read from there.

    Args:
        paths: graphs, which are written anew; their own files of numbers are removed.
        data: the file that all of them read from then on.
    """
    import onnx_ir as ir

    models = {path: load_whole(path) for path in paths}
    tensors = {
        (path, name): value.const_value
        for path, model in models.items()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= SHARED
    }
    places: dict[tuple[Path, str], int] = {}
    stored: dict[tuple[Any, ...], list[tuple[int, bytes]]] = {}
    with data.open("wb") as stream:
        for key, tensor in sorted(tensors.items(), key=lambda item: -item[1].nbytes):
            content = tensor.tobytes()
            # Only what begins alike is compared.
            family = (tensor.dtype, tuple(tensor.shape)[1:], hashlib.sha256(content[:SHARED]).digest())
            offset = next((at for at, other in stored.get(family, ()) if other[: len(content)] == content), None)
            if offset is None:
                stream.write(b"\0" * (-stream.tell() % PAGE))
                offset = stream.tell()
                stream.write(content)
                stored.setdefault(family, []).append((offset, content))
            places[key] = offset
    for path, model in models.items():
        for name, value in model.graph.initializers.items():
            if (path, name) in places:
                value.const_value = in_file(value.const_value, data, places[path, name], name)
        ir.save(model, path)
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)
