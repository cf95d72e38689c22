"""The dense model as ONNX, for comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lowrank.artifacts import staged
from lowrank.backends import Opening, open_model
from lowrank.backends.inputs import Signature
from lowrank.edge import Target
from lowrank.errors import ExportError
from lowrank.pipeline.run import GRAPHS, ONNX_FILE, write_past


def export(
    model: object,
    output: str | Path,
    *,
    opening: Opening | None = None,
    opset: int | None = None,
    with_past: bool = False,
    target: Target | None = None,
    remark: Callable[[str], object] = lambda _: None,
) -> Path:
    """The dense model as `output/model.onnx`, written the same way as a compressed one and checked against torch.

    `remark` is told what stayed as it was where it was to be rounded.

    Raises:
        ExportError: if it cannot be traced, or what was written does not agree with torch.
    """
    from lowrank.edge import fit_file, write_onnx
    from lowrank.evaluate.measure import exactness

    target = target or Target()
    target.check()
    backend = open_model(model, opening or Opening())
    if backend.source["kind"] == "onnx":
        raise ExportError(f"{model} is an ONNX file already; `lowrank compress {model}` makes a smaller one of it")
    with staged(Path(output).expanduser(), owned=GRAPHS) as stage:
        write_onnx(backend, stage / ONNX_FILE, opset)
        assert isinstance(backend.signature, Signature)
        if target.is_rounded:
            # Rounded numbers differ; what is rounded must not.
            exactness(backend, stage / ONNX_FILE)
        for note in fit_file(stage / ONNX_FILE, target, backend.signature):
            remark(note)
        if not target.is_rounded:
            exactness(backend, stage / ONNX_FILE)
        for note in write_past(backend, stage, target) if with_past else ():
            remark(note)
    return Path(output) / ONNX_FILE
