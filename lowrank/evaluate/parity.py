"""Parity: the ONNX file gives what the model gives by another way, at several shapes, padded batches among them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowrank.backends.base import Backend
from lowrank.backends.inputs import HALF, MASK, Signature
from lowrank.backends.session import typed
from lowrank.errors import ExportError, first_line
from lowrank.evaluate.session import open_session

SIZES = ((1, 1), (1, 16), (3, 9), (4, 33))
TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest output."""
HALF_TOLERANCE = 2e-2


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest difference between the model and its ONNX file, and over what."""

    max_abs: float
    relative: float
    cases: tuple[str, ...]
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether the difference is within tolerance (never for NaN)."""
        return self.relative <= self.tolerance


def check_parity(backend: Backend, path: Path) -> Parity:
    """Run a model's oracle and its ONNX file on random inputs of several shapes; padded positions do not count.

    Raises:
        ExportError: if ONNX Runtime cannot load or run the file.
    """
    signature = backend.signature
    assert isinstance(signature, Signature)
    session, reference = open_session(path), backend.reference()
    worst_abs, worst_relative, cases = 0.0, 0.0, []
    for seed, (batch, sequence) in enumerate(SIZES):
        sequence = min(sequence, signature.max_sequence)
        padded = MASK in signature.names and batch > 1
        values = signature.example(batch, sequence, seed, padded)
        try:
            ours, theirs = reference(values), session.run([signature.output], typed(session, values))[0]
        except Exception as error:
            raise ExportError(
                f"{path.name} does not run at batch {batch}, sequence {sequence}: {first_line(error)}"
            ) from None
        difference = np.abs(ours - theirs)
        if padded and difference.ndim >= 2 and difference.shape[:2] == (batch, sequence):
            difference = difference[values[MASK] == 1]
        scale = max(float(np.abs(ours).max(initial=0.0)), 1e-6)
        worst_abs = _worse(worst_abs, float(difference.max(initial=0.0)))
        worst_relative = _worse(worst_relative, float(difference.max(initial=0.0)) / scale)
        size = f"batch {batch}" + (f", sequence {sequence}" if signature.has_sequence else "")
        cases.append(size + (", padded" if padded else ""))
    return Parity(worst_abs, worst_relative, tuple(cases), _tolerance(backend))


def _tolerance(backend: Backend) -> float:
    """A graph that computes in half precision rounds a product of factors to three digits, and so does its oracle."""
    half = backend.source["kind"] == "onnx" and any(weight.dtype in HALF for weight in backend.weights)
    return HALF_TOLERANCE if half else TOLERANCE


def _worse(a: float, b: float) -> float:
    return b if np.isnan(b) else max(a, b)
