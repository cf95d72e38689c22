"""Parity: the ONNX file gives what the model gives by another way, at several shapes, padded batches among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.inputs import HALF, MASK
from lowrank.backends.ort_session import typed
from lowrank.errors import ExportError, first_line
from lowrank.evaluate.graph import open_graph
from lowrank.results.parts import Parity

SIZES = ((1, 1), (1, 16), (3, 9), (4, 33))
"""Batches and sequence lengths that are compared."""
TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest output."""
HALF_TOLERANCE = 2e-2


def check_parity(backend: Backend, path: Path) -> Parity:
    """Run a model's reference and its ONNX file on random inputs of several shapes; padded positions do not count.

    Raises:
        ExportError: if ONNX Runtime cannot load or run the file, or its outputs differ from the model's.
    """
    signature, session, reference = signature_of(backend), open_graph(path), backend.reference()
    worst_abs, worst_relative, cases = 0.0, 0.0, list[str]()
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
    # Not a number is a difference, too.
    if not worst_relative <= _tolerance(backend):
        raise ExportError(
            f"{path.name} differs from the model by {worst_abs:.2e} ({worst_relative:.1e} of the largest output) over "
            f"{'; '.join(cases)}; the factored model itself is complete"
        )
    return Parity(max_abs=worst_abs, relative=worst_relative, cases=cases)


def _tolerance(backend: Backend) -> float:
    """A graph in half precision rounds a product of factors to three digits, and so does its reference."""
    half = backend.source["kind"] == "onnx" and any(weight.dtype in HALF for weight in backend.weights)
    return HALF_TOLERANCE if half else TOLERANCE


def _worse(a: float, b: float) -> float:
    return b if np.isnan(b) else max(a, b)
