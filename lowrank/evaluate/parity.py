"""Parity: an exported file gives what the model gives by another way, at several shapes, padded batches among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from lowrank.backends.base import Backend, Outputs, signature_of
from lowrank.backends.inputs import HALF, MASK, Feed, batch_size
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
NOISES, LARGEST = 4, 1e-2
"""Or so many times what other roundings of the model itself change, but never more than this share."""


def check_parity(backend: Backend, path: Path) -> Parity:
    """Run a model's reference and its ONNX file on random inputs of several shapes, and compare every output by its
    name; see `compared`.

    Raises:
        ExportError: if ONNX Runtime cannot load or run the file, or an output differs from the model's or is not there.
    """
    signature, session = signature_of(backend), open_graph(path)
    lacking = [name for name in signature.output_names if name not in {y.name for y in session.get_outputs()}]
    if lacking:
        raise ExportError(f"{path.name} lacks the model's outputs {', '.join(lacking)}; the model itself is complete")

    def run(values: Feed) -> Outputs:
        outputs = session.run(list(signature.output_names), typed(session, values))
        return {name: floating(each) for name, each in zip(signature.output_names, outputs, strict=True)}

    return compared(backend, path.name, run)


def compared(
    backend: Backend, file: str, run: Callable[[Feed], Outputs], sizes: Sequence[tuple[int, int]] = SIZES
) -> Parity:
    """Run a model's reference and what was made of it on random inputs, and compare every output by its name; padded
    positions do not count.

    Where they differ by more than is usual, so does perhaps the model from itself in other roundings: then that is
    measured on the same inputs, and four times as much is allowed.

    Args:
        backend: the model.
        file: what was made of it, for messages.
        run: runs that.
        sizes: batches and sequence lengths to compare at.

    Raises:
        ExportError: if it does not run, or an output differs from the model's.
    """
    signature, reference = signature_of(backend), backend.reference()
    absolute, relative = (dict.fromkeys(signature.output_names, 0.0) for _ in range(2))
    noise, cases, usual = _Noise(backend), list[str](), _tolerance(backend)
    for seed, (batch, sequence) in enumerate(sizes):
        sequence = min(sequence, signature.max_sequence)
        padded = MASK in signature.names and batch > 1
        values = signature.example(batch, sequence, seed, padded)
        size = f"batch {batch_size(values)}" + (f", sequence {sequence}" if signature.has_sequence else "")
        cases.append(size + (", padded" if padded else ""))
        try:
            ours, theirs = reference(values), run(values)
        except Exception as error:
            raise ExportError(f"{file} does not run at {size}: {first_line(error)}") from None
        real = values[MASK] == 1 if padded else None
        found = {name: _largest(ours[name], theirs[name], real) for name in signature.output_names}
        # Not a number is a difference, too.
        noise.measure([name for name, (_, share) in found.items() if not share <= usual], values, ours, real)
        differing = [name for name, (_, share) in found.items() if not share <= noise.allowed(name, usual)]
        if differing:
            listed = ", ".join(f"{n} by {found[n][0]:.2e} ({found[n][1]:.1e} of its largest)" for n in differing)
            raise ExportError(
                f"{file} differs from the model in {listed} at {cases[-1]}; other roundings of the model itself "
                f"change {noise.worst or 0:.1e}. The factored model itself is complete"
            )
        absolute = {name: max(absolute[name], found[name][0]) for name in found}
        relative = {name: max(relative[name], found[name][1]) for name in found}
    return Parity(
        max_abs=max(absolute.values()),
        relative=max(relative.values()),
        cases=cases,
        outputs=dict(relative),
        noise=noise.worst,
    )


class _Noise:
    """What other roundings of a model change in its outputs, measured where it is asked for."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self._shares = backend, dict[str, float]()
        self.worst: float | None = None
        """The largest share of an output in any batch; None if nothing was measured."""

    @cached_property
    def _otherwise(self) -> Callable[[Feed], Outputs]:
        return self.backend.otherwise_rounded()

    def measure(self, names: Sequence[str], values: Feed, ours: Outputs, real: Array | None) -> None:
        """Measure some outputs of one batch."""
        if not names:
            return
        self._shares = dict.fromkeys(names, 0.0)
        try:
            other = self._otherwise(values)
        except Exception:
            # Not every model runs so: then only the usual is allowed.
            return
        shares = {name: _largest(ours[name], other[name], real)[1] for name in names}
        self._shares = {name: share for name, share in shares.items() if np.isfinite(share)}
        self.worst = max([self.worst or 0.0, *self._shares.values()])

    def allowed(self, name: str, usual: float) -> float:
        """How much an output may differ, as a share of its largest number."""
        return max(usual, min(LARGEST, NOISES * self._shares.get(name, 0.0)))


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
