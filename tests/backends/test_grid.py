"""The grid: every layer type with every structure that fits it, through the backend, against the prediction.

Layer types, their kinds and structures are those of the registries, so that a new one is looked at by itself: there is
no builder for it, or it is in the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from architectures import build
from builders import decaying, two_factors
from torch import nn

from lowrank.artifacts.replacements import REPLACEMENTS
from lowrank.backends.inputs import Signature, of_arrays
from lowrank.backends.torch import ModuleBackend, open_module
from lowrank.backends.torch.layers import Form, empty_linear, form_of, register_optional_layers
from lowrank.calibrate.collect import collect_grams
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Analysis
from lowrank.core.selection.remaining import dense_of
from lowrank.core.structures import STRUCTURES, factorize_option, structure_named
from lowrank.core.structures.base import Option
from lowrank.core.truncation.spectrum import Spectrum
from lowrank.core.weight import CouplingKind, LayerKind, View
from lowrank.pipeline.analyzing import analyze_couplings, analyze_weights
from lowrank.progress import silent

ROWS, COLS = 24, 16


def linear(bias: bool = True) -> nn.Module:
    layer = nn.Linear(COLS, ROWS, bias=bias)
    layer.weight.data = torch.from_numpy(decaying(ROWS, COLS)).float()
    return layer


def conv1d(bias: bool = True) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(ROWS, COLS)
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(decaying(ROWS, COLS).T)).float()
    nn.init.normal_(layer.bias) if bias else nn.init.zeros_(layer.bias)
    return layer


class Product(nn.Module):
    """A product with a weight that is no linear layer: the kind that a graph's Einsum has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(decaying(COLS, ROWS)).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


form_of.register(Product, lambda module: Form(View("cols rows"), "contraction", empty=empty_linear))


class Tied(nn.Module):
    """A table and a head with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, COLS), nn.Linear(COLS, 30, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids))


def floats(*shape: int) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def ids() -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(0).integers(0, 30, (4, 9))}


Layers = dict[str, tuple[Callable[[], nn.Module], Mapping[str, np.ndarray] | None]]
LAYERS: Layers = {
    "linear": (linear, floats(40, COLS)),
    "Conv1D": (conv1d, floats(40, COLS)),
    "contraction": (Product, floats(40, COLS)),
    "conv1d": (lambda: nn.Conv1d(6, 12, 3, padding=1), floats(3, 6, 20)),
    "conv2d": (lambda: nn.Conv2d(6, 12, 3, padding=1), floats(3, 6, 8, 8)),
    "conv2d with groups": (lambda: nn.Conv2d(8, 12, 3, groups=2), floats(3, 8, 8, 8)),
    "embedding": (lambda: nn.Embedding(30, COLS), ids()),
    "embedding and head": (Tied, ids()),
    "attention": (lambda: build("encoder"), floats(2, 12, 32)),
    "fused attention": (lambda: build("gpt2"), None),
    "rotary attention": (lambda: build("llama"), None),
    "experts": (lambda: build("mixtral"), None),
}
"""A model with layers of a type, and what it is fed with if it does not say so itself."""
CASES = [(layer, structure) for layer in LAYERS for structure in STRUCTURES]


@cache
def with_analysis(layer: str) -> tuple[ModuleBackend, Analysis, dict[str, np.ndarray]]:
    """The model of a layer type, its analysis on one batch that serves as every fold, and that batch."""
    torch.manual_seed(0)
    make, feed = LAYERS[layer]
    dense = open_module(make().eval() if feed is None else nn.Sequential(make()).eval())
    assert isinstance(dense, ModuleBackend)
    if feed is not None:
        dense = dense.fed_with(of_arrays(feed))
    assert isinstance(dense.signature, Signature)
    batch = dict(feed) if feed is not None else dense.signature.example(4, 12)
    calibration = Calibration((batch,), (batch,), (batch,), dense, {"samples": 4})
    names = {name for coupling in dense.couplings for name in coupling.weights}
    grams = collect_grams(calibration, dense.weights, silent, names)
    couplings = analyze_couplings(dense, dense.couplings, grams)
    return dense, Analysis(analyze_weights(dense, dense.weights, grams), couplings=couplings, grams=grams), batch


def offered(layer: str, structure: str) -> tuple[list[Option], list[str]]:
    """An option of a structure for every kind of group that it fits, and for each other group why it does not."""
    _, analysis, _ = with_analysis(layer)
    options: dict[object, Option] = {}
    reasons: list[str] = []
    for group in analysis.groups.values():
        curve = structure_named(structure).curve(group, analysis, 1)
        kinds = tuple(layer.kind for weight in group.weights for layer in analysis[weight].weight.layers)
        try:
            rank = int(curve.ranks[len(curve.ranks) // 2]) if len(curve.ranks) else 1
            option = structure_named(structure).at(group, analysis, rank)
            options.setdefault((kinds, group.coupling and group.coupling.kind), option)
        except ValueError as reason:
            reasons.append(str(reason))
    return list(options.values()), reasons


@pytest.mark.parametrize(("layer", "structure"), CASES)
def test_layer_and_structure(layer: str, structure: str) -> None:
    """What is put in computes what its numbers say, survives a journal, and loses what was predicted."""
    options, reasons = offered(layer, structure)
    assert all(reasons) and (options or reasons)
    for option in options:
        check(option, *with_analysis(layer))


def check(option: Option, dense: ModuleBackend, analysis: Analysis, batch: Mapping[str, np.ndarray]) -> None:
    structure = structure_named(option.structure)
    replacements = factorize_option(option, analysis, dense)
    if not structure.replaces:
        assert not replacements
        return
    replacements = REPLACEMENTS.decode(REPLACEMENTS.encode(replacements))
    weights = {name: analysis[name].weight for name in analysis.groups[option.group].weights}
    assert set(replacements) == set(weights)
    assert {type(each.factors) for each in replacements.values()} == {structure.factors}
    same = dense.changed({n: (dense_of(r, weights[n]), r.dense_bias(weights[n])) for n, r in replacements.items()})
    want = same.run(batch)
    assert np.allclose(dense.rewrite(replacements).run(batch), want, atol=2e-4 * np.abs(want).max())
    gram = analysis.grams[option.group].judge if option.group in analysis.grams else None
    if gram is not None and gram.informs and gram.side == "input" and gram.moment.ndim == 2:
        matrix, stands_for = dense.read(option.group), dense_of(replacements[option.group], weights[option.group])
        lost, total = (float(np.vdot(m @ gram.moment, m)) for m in (matrix - stands_for, matrix))
        assert option.error == pytest.approx(lost / total, rel=1e-4, abs=1e-9)


def test_nothing_is_left_out() -> None:
    """Every registered layer type, every kind of layer and coupling, and every structure is in the grid."""
    register_optional_layers()
    modules = [module for layer in LAYERS for module in with_analysis(layer)[0].module.modules()]
    ours = {kind for kind in form_of.registry if kind.__module__.split(".")[0] in ("torch", "transformers")}
    assert ours <= {type(module) for module in modules}
    weights = [record.weight for layer in LAYERS for record in with_analysis(layer)[1].weights]
    assert {layer.kind for weight in weights for layer in weight.layers} == set(get_args(LayerKind))
    couplings = [each.group.coupling for layer in LAYERS for each in with_analysis(layer)[1].couplings]
    # Neighbours that turn together are another order of the same pairs: see `test_structures`.
    assert {each.kind for each in couplings if each is not None} == set(get_args(CouplingKind)) - {"rotary_neighbours"}
    fitting = {structure for layer, structure in CASES if offered(layer, structure)[0]}
    assert fitting == set(STRUCTURES)


REGIMES = {"full": min(ROWS, COLS), "break-even": (ROWS * COLS - 1) // (ROWS + COLS), "one": 1}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.mark.parametrize("layer", [linear, conv1d])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("regime", REGIMES)
def test_types_and_ranks(layer: Callable[[bool], nn.Module], bias: bool, dtype: torch.dtype, regime: str) -> None:
    model = nn.ModuleDict({"inner": layer(bias)}).to(dtype).eval()
    backend = open_module(model)
    assert isinstance(backend, ModuleBackend)
    (weight,) = backend.weights
    assert weight.shape == (ROWS, COLS)
    matrix, rank = backend.read(weight.name), REGIMES[regime]
    small = backend.rewrite({weight.name: two_factors(matrix, rank)})
    new: Any = small.module.get_submodule("inner")
    x = torch.eye(COLS, dtype=dtype)
    with torch.no_grad():
        dense, factored = model["inner"](x).double(), new(x).double()
    lost = float((dense - factored).norm() / (torch.from_numpy(matrix)).norm())
    predicted = Spectrum(np.linalg.svd(matrix, compute_uv=False)).relative_error(rank)
    assert lost == pytest.approx(predicted, abs=TOLERANCES[dtype])
    assert new.left.weight.dtype == dtype
    assert model["inner"].weight.shape in {(ROWS, COLS), (COLS, ROWS)}, "the original is unchanged"
