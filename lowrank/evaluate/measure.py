"""A Report: one compressed model, with its ONNX file, against the model that it was made from."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.base import Backend
from lowrank.backends.torch import ModuleBackend, StateDictBackend, load
from lowrank.backends.torch.inputs import Signature
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Analysis
from lowrank.core.match import stem
from lowrank.core.plan import Plan
from lowrank.errors import ArtifactError, ExportError
from lowrank.evaluate.fidelity import measure_fidelity
from lowrank.evaluate.latency import measure_latency
from lowrank.evaluate.parity import check_parity
from lowrank.evaluate.report import ONNX_FILE, Report
from lowrank.progress import Clock, Track

SEQUENCE = 128


def measure(
    dense: Backend,
    small: Backend,
    analysis: Analysis,
    plan: Plan,
    folder: Path,
    calibration: Calibration | None,
    latency: bool,
    track: Track,
    clock: Clock,
) -> Report:
    """Everything that report.json holds of a compressed model and the `model.onnx` in its folder.

    Args:
        dense: the original.
        small: the compressed model, as loaded from the folder.
        analysis: of the original.
        plan: that the compressed model follows.
        folder: where `model.onnx` is, if there is one.
        calibration: its report fold is what fidelity is measured on; random inputs without it.
        latency: export the dense model too and time both.
        track: shows progress.
        clock: counts seconds by stage.
    """
    notes, problems = [*analysis.notes, *plan.notes], list[str]()
    parity = times = quality = None
    relative = _plain_error(dense, small, analysis)
    onnx = folder / ONNX_FILE
    if isinstance(dense, ModuleBackend) and isinstance(small, ModuleBackend):
        signature = signature_of(small, calibration)
        if isinstance(signature, str):
            notes.append(f"no model.onnx and no measured quality: {signature}; give inputs with --calib inputs.npz")
        else:
            with clock.stage("fidelity"):
                quality = _quality(dense.module, small.module, signature, calibration, track)
            relative = quality["relative_error"]
            lost = [name for name, value in quality.items() if isinstance(value, float) and not math.isfinite(value)]
            if lost:
                problems.append(
                    f"the outputs are not finite, so {', '.join(lost)} cannot be measured; look at the weights"
                )
                quality, relative = None, None
            try:
                if onnx.exists():
                    with clock.stage("parity"):
                        parity = _parity(small.module, signature, onnx)
                    if latency:
                        with clock.stage("latency"):
                            shown = track((onnx,), "timing both models", 1)
                            times = next(_compare_latency(dense.module, signature, path) for path in shown)
            except ExportError as error:
                problems.append(str(error))
    else:
        notes.append(
            "no model.onnx: a plain state dict does not say how its tensors are applied; give --arch "
            "package.module:factory or "
            "--config config.json"
        )
    return Report(
        targets=_targets(analysis, plan),
        model=_sizes(dense, small, analysis, plan),
        budget={
            **(asdict(plan.budget) if plan.budget else {"kind": "plan", "limit": None}),
            "reached": plan.reached,
        },
        error={"relative": relative, "per_weight": {o.group: o.error**0.5 for o in plan.options}},
        parity=parity,
        latency=times,
        quality=quality,
        skipped=[{"name": s.name, "shape": list(s.shape), "reason": s.reason} for s in analysis.skips],
        notes=notes,
        problems=problems,
    )


def signature_of(backend: ModuleBackend, calibration: Calibration | None) -> Signature | str:
    """How to feed the model: as its calibration data showed, else as it says itself."""
    return calibration.signature if calibration is not None else backend.signature


def reloaded(small: ModuleBackend, folder: Path) -> ModuleBackend:
    """The saved model as a user will load it, checked to be the one that was made, tensor for tensor.

    A module that takes code to build cannot be loaded without it, and is returned as it is in memory.

    Raises:
        ArtifactError: if any differs.
    """
    if small.rebuild["kind"] not in {"huggingface", "program", "arch"}:
        return small
    loaded = load(folder, arch=small.rebuild.get("arch"))
    assert isinstance(loaded, nn.Module)
    if small.rebuild["kind"] != "program":
        # A program is traced anew when it is saved, under other names; its outputs are compared with ONNX all the same.
        saved, before = loaded.state_dict(), small.module.state_dict()
        wrong = [name for name in before if name not in saved or not _identical(before[name], saved[name])]
        if wrong or len(saved) != len(before):
            raise ArtifactError(
                f"{folder}: the saved model is not the one that was made: {len(wrong)} tensors differ, "
                f"{(wrong or ['?'])[0]} for one; please report this with the model's config"
            )
    return replace(small, module=loaded)


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def _quality(
    dense: nn.Module, small: nn.Module, signature: Signature, calibration: Calibration | None, track: Track
) -> dict[str, Any]:
    random = [signature.example(4, 16, seed) for seed in range(4)]
    batches = list(calibration.report) if calibration is not None else random
    found = measure_fidelity(dense, small, signature, track(batches, "measuring fidelity", len(batches)))
    return {
        **found,
        "data": "random inputs" if calibration is None else calibration.report_label,
    }


def _parity(module: nn.Module, signature: Signature, path: Path) -> dict[str, Any]:
    parity = check_parity(module, signature, path)
    if not parity.holds:
        raise ExportError(
            f"{ONNX_FILE} differs from torch by {parity.max_abs:.2e} ({parity.relative:.1e} of the largest "
            f"output) over "
            f"{'; '.join(parity.cases)}; the factored model itself is complete"
        )
    return {"max_abs": parity.max_abs, "relative": parity.relative, "cases": list(parity.cases)}


def _compare_latency(dense: nn.Module, signature: Signature, small: Path) -> dict[str, Any]:
    from lowrank.edge import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ONNX_FILE
        export_onnx(dense, signature, path)
        dense_bytes = sum(p.stat().st_size for p in Path(folder).iterdir())
        found = measure_latency({"dense": path, "compressed": small}, signature, 1, SEQUENCE)
    small_bytes = sum(p.stat().st_size for p in small.parent.glob(f"{ONNX_FILE}*"))
    sequence = f" x {min(SEQUENCE, signature.max_sequence)}" if signature.has_sequence else ""
    return {
        "dense_ms": found["dense"],
        "compressed_ms": found["compressed"],
        "speedup": found["dense"] / found["compressed"],
        "threads": 1,
        "cores": os.cpu_count(),
        "shapes": [f"1{sequence}"],
        "dense_onnx_bytes": dense_bytes,
        "compressed_onnx_bytes": small_bytes,
    }


def _plain_error(dense: Backend, small: Backend, analysis: Analysis) -> float | None:
    """Relative error of the targeted matrices themselves, as stored, when there is nothing to run."""
    if not isinstance(dense, StateDictBackend) or not isinstance(small, StateDictBackend):
        return None
    lost = total = 0.0
    for weight in (record.weight for record in analysis.weights):
        matrix = dense.read(weight.name)
        total += float(np.square(matrix).sum())
        left = small.tensors.get(f"{stem(weight.name)}.left.weight")
        right = small.tensors.get(f"{stem(weight.name)}.right.weight")
        if left is not None and right is not None:
            lost += float(np.square(matrix - (left.double() @ right.double()).numpy()).sum())
    return (lost / total) ** 0.5 if total else 0.0


def _targets(analysis: Analysis, plan: Plan) -> dict[str, Any]:
    before, after = analysis.dense_params, plan.cost
    return {"params_before": before, "params_after": after, "keep_ratio": after / before if before else 1.0}


def _sizes(dense: Backend, small: Backend, analysis: Analysis, plan: Plan) -> dict[str, Any]:
    """Numbers, bytes of the tensors, and multiply-adds for one token in the linear layers."""
    uses = {w.name: max(len(w.layers), 1) for w in dense.weights}
    macs_before = sum(w.params * uses[w.name] for w in dense.weights)
    groups = {group.name: group for group in analysis.groups}
    saved = sum((analysis.params(groups[o.group]) - o.cost) * uses[groups[o.group].weights[0]] for o in plan.options)
    bytes_before, bytes_after = _bytes(dense), _bytes(small)
    return {
        "params_before": dense.params,
        "params_after": small.params,
        "bytes_before": bytes_before,
        "bytes_after": bytes_after,
        "macs_before": macs_before,
        "macs_after": macs_before - saved,
    }


def _bytes(backend: Backend) -> int:
    from lowrank.backends.torch.tensors import storage_key

    if isinstance(backend, ModuleBackend):
        state: Mapping[str, Tensor] = backend.module.state_dict()
    else:
        assert isinstance(backend, StateDictBackend)
        state = backend.tensors
    return sum({storage_key(t): t.numel() * t.element_size() for t in state.values() if t.numel()}.values())
