"""A model as an ONNX file in the types and with the operators that a target asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.onnx.save import copy_graph, load_whole, save_model
from lowrank.core.rounding.formats import FORMATS, Stored
from lowrank.edge.fuse import fuse_file
from lowrank.edge.quantize import quantize_file
from lowrank.edge.target import Target

WITHOUT_PIVOTS = "pivoted factors are two factors or one matrix in the graph, as pivots do not bear few bits"
LARGE = 1 << 20
"""Bytes of a table that is better mapped than read."""


def make_graph(
    model: Backend,
    path: Path,
    target: Target,
    feeds: Sequence[Feed] = (),
    stored: Mapping[str, Stored] | None = None,
    plain: bool = False,
    opset: int | None = None,
) -> list[str]:
    """Write a model as an ONNX file for a target.

    Args:
        model: one that can be run.
        path: of the file.
        target: what the file is for.
        feeds: calibration data for rounding; see `edge.quantize`.
        stored: of a `mixed` target, how each weight is stored.
        plain: only round, which takes as many bytes.
        opset: the operator set.

    Returns:
        Remarks on what stayed as it was.

    Raises:
        ExportError: if the model cannot be traced, or its graph not be fused.
    """
    model, notes = fit_for(model, target)
    assert isinstance(model.signature, Signature)
    model.write_onnx(path, opset)
    return notes + fit_file(path, target, model.signature, feeds, stored, plain)


def write_again(model: Backend, exact: Path, path: Path, target: Target) -> tuple[Backend, list[str]]:
    """Write a model whose exact graph is there already for another target, which `fit_file` then fits it to.

    Tracing a model takes seconds, so the graph is copied, unless the model has pivots, which do not bear few bits.

    Args:
        model: one that can be run.
        exact: its graph, as `Backend.write_onnx` gave it.
        path: of the new file.
        target: what the file is for.

    Returns:
        The model that was written, which is the one that was given if the graph was copied; and remarks.

    Raises:
        ExportError: if the model cannot be traced.
    """
    other, notes = fit_for(model, target)
    if other is model:
        copy_graph(exact, path)
    else:
        other.write_onnx(path)
    return other, notes


def fit_for(model: Backend, target: Target) -> tuple[Backend, list[str]]:
    """The model to be written for a target, and remarks: without pivots, if all of it is rounded to few bits.

    Raises:
        ExportError: if it has pivots, and cannot be changed.
    """
    if target.dtype not in FORMATS:
        return model, []
    other = model.without_pivots()
    return other, [] if other is model else [WITHOUT_PIVOTS]


def fit_file(
    path: Path,
    target: Target,
    signature: Signature,
    feeds: Sequence[Feed] = (),
    stored: Mapping[str, Stored] | None = None,
    plain: bool = False,
) -> list[str]:
    """Round and fuse what `Backend.write_onnx` wrote of the model of `fit_for`, in place; see `make_graph`.

    Raises:
        ExportError: if the graph cannot be fused.
    """
    notes = quantize_file(path, target, signature, feeds, plain, stored) if target.is_rounded else []
    if target.profile == "ort":
        fuse_file(path)
    if target.is_rounded:
        _pack(path)
    return notes


def _pack(path: Path) -> None:
    """Leave out of a file what its reader works out for itself: the shapes of what nodes give, and, of tensors that are
    no tables, the padding to whole pages. In few bits that is a twentieth of a small model."""
    model = load_whole(path)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
    save_model(model, path, aligned=LARGE)
