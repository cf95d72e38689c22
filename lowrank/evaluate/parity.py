"""Parity: the ONNX file gives what the model gives by another way, at several shapes, padded batches among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.inputs import HALF, MASK
from lowrank.backends.ort_session import floating, typed
from lowrank.core.distance import Array
from lowrank.errors import ExportError, first_line
from lowrank.evaluate.graph import open_graph
from lowrank.results.parts import Parity

SIZES = ((1, 1), (1, 16), (3, 9), (4, 33))
"""Batches and sequence lengths that are compared."""
TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest output."""
HALF_TOLERANCE = 2e-2


def check_parity(backend: Backend, path: Path) -> Parity:
    """Run a model's reference and its ONNX file on random inputs of several shapes, and compare every output by its
    name; padded positions do not count.

    Raises:
        ExportError: if ONNX Runtime cannot load or run the file, or an output differs from the model's or is not there.
    """
    signature, session, reference = signature_of(backend), open_graph(path), backend.reference()
    lacking = [name for name in signature.output_names if name not in {y.name for y in session.get_outputs()}]
    if lacking:
        raise ExportError(f"{path.name} lacks the model's outputs {', '.join(lacking)}; the model itself is complete")
    absolute, relative = (dict.fromkeys(signature.output_names, 0.0) for _ in range(2))
    cases: list[str] = []
    for seed, (batch, sequence) in enumerate(SIZES):
        sequence = min(sequence, signature.max_sequence)
        padded = MASK in signature.names and batch > 1
        values = signature.example(batch, sequence, seed, padded)
        try:
            ours, theirs = reference(values), session.run(list(signature.output_names), typed(session, values))
        except Exception as error:
            raise ExportError(
                f"{path.name} does not run at batch {batch}, sequence {sequence}: {first_line(error)}"
            ) from None
        for name, output in zip(signature.output_names, theirs, strict=True):
            found = _largest(ours[name], floating(output), values[MASK] == 1 if padded else None)
            absolute[name], relative[name] = _worse(absolute[name], found[0]), _worse(relative[name], found[1])
        size = f"batch {batch}" + (f", sequence {sequence}" if signature.has_sequence else "")
        cases.append(size + (", padded" if padded else ""))
    # Not a number is a difference, too.
    differing = [name for name, share in relative.items() if not share <= _tolerance(backend)]
    if differing:
        listed = ", ".join(
            f"{name} by {absolute[name]:.2e} ({relative[name]:.1e} of its largest)" for name in differing
        )
        raise ExportError(
            f"{path.name} differs from the model in {listed} over {'; '.join(cases)}; the factored model itself is "
            "complete"
        )
    return Parity(max_abs=max(absolute.values()), relative=max(relative.values()), cases=cases, outputs=dict(relative))


def _largest(ours: Array, theirs: Array, real: Array | None) -> tuple[float, float]:
    """The largest difference of an output, and as a share of its largest number; not a number where the shapes differ.

    Args:
        ours: the model's.
        theirs: of the file.
        real: which positions are no padding, batch x sequence.
    """
    if ours.shape != theirs.shape:
        return float("nan"), float("nan")
    difference = np.where(ours == theirs, 0, np.abs(ours - theirs))
    if real is not None and difference.shape[:2] == real.shape:
        difference = difference[real]
    largest = float(difference.max(initial=0.0))
    return largest, largest / max(float(np.abs(ours[np.isfinite(ours)]).max(initial=0.0)), 1e-6)


def _tolerance(backend: Backend) -> float:
    """A graph in half precision rounds a product of factors to three digits, and so does its reference."""
    half = backend.source["kind"] == "onnx" and any(weight.dtype in HALF for weight in backend.weights)
    return HALF_TOLERANCE if half else TOLERANCE


def _worse(a: float, b: float) -> float:
    return b if np.isnan(b) else max(a, b)
