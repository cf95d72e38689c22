"""Giving a graph that was written the types and operators that it is to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank.backends.inputs import Feed, Signature
    from lowrank.core.rounding.formats import Stored
from lowrank.edge.target import Target


def fit_file(
    path: Path,
    target: Target,
    signature: Signature,
    feeds: Sequence[Feed] = (),
    stored: Mapping[str, Stored] | None = None,
    plain: bool = False,
) -> list[str]:
    """Round and fuse what `Backend.write_onnx` wrote, in place, as far as a target asks for it.

    Args:
        path: the file.
        target: what it is to be for.
        signature: how the model is fed.
        feeds: calibration data for rounding; see `edge.quantize`.
        stored: of a `mixed` target, how each weight is stored.
        plain: only round, which takes as many bytes.

    Returns:
        Remarks on what stayed as it was.

    Raises:
        ExportError: if the graph cannot be fused.
    """
    notes = list[str]()
    if target.is_rounded:
        from lowrank.edge.quantize import quantize_file

        notes = quantize_file(path, target.dtype, signature, feeds, plain, stored)
    if target.profile == "ort":
        from lowrank.edge.fuse import fuse_file

        fuse_file(path)
    if target.is_rounded:
        from lowrank.backends.onnx.passes.tidy import pack_file

        pack_file(path)
    return notes
