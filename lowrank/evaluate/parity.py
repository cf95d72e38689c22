"""Parity: the ONNX file gives what the torch module gives, at several shapes, padded batches among them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lowrank.backends.torch.inputs import MASK, Signature, as_float32, to_arrays
from lowrank.edge.export import in_float32
from lowrank.errors import ExportError, first_line
from lowrank.evaluate.session import open_session

SIZES = ((1, 1), (1, 16), (3, 9), (4, 33))
TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest output."""


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest difference between torch and ONNX Runtime, and over what."""

    max_abs: float
    relative: float
    cases: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the difference is within tolerance (never for NaN)."""
        return self.relative <= TOLERANCE


def check_parity(module: nn.Module, signature: Signature, path: Path) -> Parity:
    """Run both on random inputs of several shapes; padded positions are masked out of the comparison.

    Raises:
        ExportError: if ONNX Runtime cannot load or run the file.
    """
    session = open_session(path)
    # The graph computes in float32 what a half-precision module would round at every step.
    module = in_float32(module)
    worst_abs, worst_relative, cases = 0.0, 0.0, []
    for seed, (batch, sequence) in enumerate(SIZES):
        sequence = min(sequence, signature.max_sequence)
        padded = MASK in signature.names and batch > 1
        values = {k: as_float32(v) for k, v in signature.example(batch, sequence, seed, padded).items()}
        try:
            with torch.no_grad():
                ours = signature.call(module, values).numpy()
            theirs = session.run([signature.output], to_arrays(values))[0]
        except Exception as error:
            raise ExportError(
                f"{path.name} does not run at batch {batch}, sequence {sequence}: {first_line(error)}"
            ) from None
        difference = np.abs(ours - theirs)
        if padded and difference.ndim >= 2 and difference.shape[:2] == (batch, sequence):
            difference = difference[values[MASK].numpy() == 1]
        scale = max(float(np.abs(ours).max(initial=0.0)), 1e-6)
        worst_abs = _worse(worst_abs, float(difference.max(initial=0.0)))
        worst_relative = _worse(worst_relative, float(difference.max(initial=0.0)) / scale)
        size = f"batch {batch}" + (f", sequence {sequence}" if signature.has_sequence else "")
        cases.append(size + (", padded" if padded else ""))
    return Parity(worst_abs, worst_relative, tuple(cases))


def _worse(a: float, b: float) -> float:
    return b if np.isnan(b) else max(a, b)
