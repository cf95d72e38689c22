"""The dense model as ONNX, for comparison."""

from __future__ import annotations

from pathlib import Path

from lowrank.artifacts import staged
from lowrank.backends import Opening, open_model
from lowrank.edge import Profile, check_profile
from lowrank.errors import ExportError
from lowrank.pipeline.run import GRAPHS, ONNX_FILE


def export(
    model: object,
    output: str | Path,
    *,
    opening: Opening | None = None,
    opset: int | None = None,
    with_past: bool = False,
    profile: Profile = "portable",
) -> Path:
    """The dense model as `output/model.onnx`, written the same way as a compressed one and checked against torch.

    Raises:
        ExportError: if it cannot be traced, or what was written does not agree with torch.
    """
    from lowrank.edge import write_onnx, write_with_past
    from lowrank.evaluate import check_parity
    from lowrank.evaluate.generation import check_generation

    check_profile(profile)
    backend = open_model(model, opening or Opening())
    if backend.source["kind"] == "onnx":
        raise ExportError(f"{model} is an ONNX file already; `lowrank compress {model}` makes a smaller one of it")
    with staged(Path(output).expanduser(), owned=GRAPHS) as stage:
        write_onnx(backend, stage / ONNX_FILE, opset, profile)
        parity = check_parity(backend, stage / ONNX_FILE)
        if not parity.holds:
            raise ExportError(
                f"the exported graph differs from torch by {parity.max_abs:.2e} over {', '.join(parity.cases)}"
            )
        if with_past:
            check_generation(backend, write_with_past(backend, stage, profile=profile))
    return Path(output) / ONNX_FILE
