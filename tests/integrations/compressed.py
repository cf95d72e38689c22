"""Small compressed models in their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import analysis_of
from builders import two_factors
from torch import nn

import lowrank
from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.torch import ModuleBackend
from lowrank.backends.torch.inputs import call
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement
from lowrank.core.structures.permute import agree_channel_order
from lowrank.core.weight import Group
from lowrank.pipeline.plans import factorize


def compressed(model: Any, run: Path, targets: Sequence[str] = ("projections",)) -> tuple[ModuleBackend, Path]:
    """A model of transformers at half its size, saved as `compress` saves it: the backend, and the folder."""
    dense = _dense(model, run)
    analysis = lowrank.analyze(run / "dense", settings=lowrank.Settings(calib="none", targets=tuple(targets)))
    return _saved(dense, factorize(dense, analysis, lowrank.select(analysis, 0.5)), run)


def of_structure(model: Any, run: Path, structure: str) -> tuple[ModuleBackend, Path]:
    """The same with one structure wherever it can be, at half its rank."""
    dense = _dense(model, run)
    assert isinstance(dense.signature, Signature)
    analysis = analysis_of(dense, dense.couplings, tuple(dense.signature.example(2, 11) for _ in range(2)))
    kind = structure_named(structure)
    assert kind is not None
    made: dict[str, Replacement] = {}
    couplings = [
        (coupling.group, int(coupling.ranks[-1])) for coupling in analysis.couplings if coupling.structure == structure
    ]
    singles = (
        [] if couplings else [(Group(r.weight.name, (r.weight.name,)), min(r.weight.shape)) for r in analysis.weights]
    )
    for group, most in couplings or singles:
        if not set(group.weights) & set(made):
            made |= kind.factorize(group, most // 2, analysis, dense)
    return _saved(dense, made, run)


def saved_factors(folder: Path, run: Path, rank: int = 4) -> Path:
    """Every projection of a folder's model as two factors: the folder that they are saved in."""
    backend = open_model(folder)
    assert isinstance(backend, ModuleBackend)
    names = [weight.name for weight in backend.weights if weight.role == "projection"]
    (run / "model").mkdir(parents=True)
    backend.rewrite({name: two_factors(backend.read(name), rank) for name in names}).save(run / "model")
    return run / "model"


def _dense(model: Any, run: Path) -> ModuleBackend:
    model.save_pretrained(run / "dense")
    dense = open_model(run / "dense")
    assert isinstance(dense, ModuleBackend)
    return dense


def _saved(dense: ModuleBackend, made: Mapping[str, Replacement], run: Path) -> tuple[ModuleBackend, Path]:
    small = dense.rewrite(agree_channel_order(made, dense.weights, dense.couplings, dense))
    (run / "model").mkdir()
    small.save(run / "model")
    return small, run / "model"


def outputs(small: ModuleBackend, module: nn.Module) -> np.ndarray:
    """What a module gives for a padded batch."""
    assert not isinstance(small.signature, str)
    with torch.no_grad():
        outputs = call(small.signature, module, small.signature.example(2, 7, padded=True))
        return outputs[small.signature.output].float().numpy()
