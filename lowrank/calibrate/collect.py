"""Grams from forward passes: hooks on the targeted layers, nothing kept but the moments."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.backends.torch.inputs import MASK
from lowrank.calibrate.data import Batch, Calibration
from lowrank.core.analysis import Folds
from lowrank.core.gram import Gram, Side
from lowrank.core.weight import Weight
from lowrank.errors import CalibrationError
from lowrank.progress import Track


def collect_grams(calibration: Calibration, weights: Sequence[Weight], track: Track) -> dict[str, Folds]:
    """The second moments of what each weight's layers see (or give), by weight name, for the two folds.

    Weights that are wide (fewer rows than columns) get the Gram of their outputs, the others that of their inputs:
    the smaller of the two always decides the truncation. Layers fed with the same tensor, such as query, key and value,
    have their product computed once. Where a batch has an attention mask, the rows that it masks are left out.

    Raises:
        CalibrationError: if the model cannot be run on the data.
    """
    fit = _run(calibration, weights, track(calibration.fit, "calibrating", len(calibration.fit)))
    held = _run(calibration, weights, track(calibration.heldout, "held-out fold", len(calibration.heldout)))
    return _share({w.name: Folds(fit[w.name], held[w.name]) for w in weights})


def _run(calibration: Calibration, weights: Sequence[Weight], batches: Iterable[Batch]) -> dict[str, Gram]:
    collector = _Collector(weights)
    with collector.watching(calibration.module), torch.no_grad():
        for batch in batches:
            collector.mask = batch.get(MASK)
            try:
                calibration.signature.call(calibration.module, batch)
            except Exception as error:
                shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in batch.items())
                raise CalibrationError(
                    f"the model cannot be run on the calibration data ({shapes}): {str(error).splitlines()[0][:160]}"
                ) from error
            collector.forget()
    return collector.grams


class _Collector:
    def __init__(self, weights: Sequence[Weight]) -> None:
        self.grams = {w.name: Gram.zeros(*_side_and_width(w)) for w in weights}
        self._weights = weights
        self.mask: Tensor | None = None
        self._last: tuple[Tensor, int, Gram] | None = None

    def forget(self) -> None:
        """Let go of the last batch's tensor."""
        self._last = None

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Hooks on every layer of every weight; the fused kernels that would pass them by are off."""
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        handles = [
            module.get_submodule(layer.name).register_forward_hook(self._hook(weight), with_kwargs=True)
            for weight in self._weights
            for layer in weight.layers
        ]
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for handle in handles:
                handle.remove()

    def _hook(self, weight: Weight) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen: Tensor = args[0] if args else next(iter(kwargs.values()))
            gram = self.grams[weight.name]
            if gram.side == "output":
                bias = getattr(layer, "bias", None)
                product = output.double() if bias is None else output.double() - bias.double()
                self.grams[weight.name] = gram + _gram("output", self._rows(product), _energy(self._rows(seen)))
            else:
                self.grams[weight.name] = gram + self._input_gram(seen)

        return hook

    def _input_gram(self, seen: Tensor) -> Gram:
        # The same object, still alive and not written to since: the address alone could belong to a later tensor.
        if self._last is None or self._last[0] is not seen or self._last[1] != seen._version:
            rows = self._rows(seen)
            self._last = (seen, seen._version, _gram("input", rows, _energy(rows)))
        return self._last[2]

    def _rows(self, tensor: Tensor) -> Tensor:
        """Tokens x width in float64, without those that the batch's mask leaves out."""
        tensor = tensor.detach().to(device="cpu", dtype=torch.float64)
        if self.mask is not None and tensor.shape[:-1] == self.mask.shape:
            return tensor[self.mask != 0]
        return tensor.reshape(-1, tensor.shape[-1])


def _side_and_width(weight: Weight) -> tuple[Side, int]:
    return ("output", weight.rows) if weight.rows < weight.cols else ("input", weight.cols)


def _gram(side: Side, rows: Tensor, energy: float) -> Gram:
    """The Gram of a batch, multiplied by torch: numpy's threads and torch's would get in each other's way."""
    finite = torch.isfinite(rows).all(1)
    kept = rows if finite.all() else rows[finite]
    return Gram(side, (kept.T @ kept).numpy(), len(kept), energy, len(rows) - len(kept))


def _energy(rows: Tensor) -> float:
    return float(rows[torch.isfinite(rows).all(1)].square().sum())


def _share(folds: dict[str, Folds]) -> dict[str, Folds]:
    """One object for equal moments, so that they are kept and stored once."""
    kept: dict[str, Folds] = {}
    return {name: kept.setdefault(_key(f), f) for name, f in folds.items()}


def _key(folds: Folds) -> str:
    digest = hashlib.sha256()
    for gram in (folds.fit, folds.heldout):
        digest.update(repr((gram.side, gram.tokens, gram.energy)).encode())
        digest.update(gram.moment.tobytes())
    return digest.hexdigest()
