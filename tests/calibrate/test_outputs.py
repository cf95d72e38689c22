"""The measures of a model's output, and what is predicted from them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_transformer, trained_blocks
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lowrank
from lowrank.artifacts import load_analysis, save_analysis
from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.outputs import Output
from lowrank.backends.torch.curvature import output_curvature
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.partial_forward import Prefix
from lowrank.calibrate.collect import collect_grams
from lowrank.calibrate.data import Calibration
from lowrank.calibrate.interactions import measure_contexts, replacements_at
from lowrank.calibrate.sensitivity import changes_of, measure_sensitivity
from lowrank.core.analysis import Analysis, loss_of
from lowrank.core.budget import Budget
from lowrank.core.selection.knapsack import Knapsack
from lowrank.pipeline.analyzing import analyze_couplings, analyze_weights
from lowrank.progress import silent


@given(st.floats(1e-4, 0.1), st.floats(1.1, 9), st.floats(1e-4, 0.1), st.floats(0.5, 9))
def test_loss_goes_through_what_was_measured(own: float, wider: float, lost: float, steeper: float) -> None:
    pairs = ((own, lost), (own * wider, lost * steeper))
    errors = np.linspace(0, 1, 50)
    losses = loss_of(errors, pairs)
    assert losses[0] == 0 and (np.diff(losses) > 0).all()
    # The larger error is the one that stands out of rounding; the exponent is held between 0.5 and 2.
    assert loss_of(np.array([own * wider]), pairs)[0] == pytest.approx(lost * steeper, rel=1e-6)
    if wider**0.5 <= steeper <= wider**2:
        assert loss_of(np.array([own]), pairs)[0] == pytest.approx(lost, rel=1e-6)


@pytest.fixture(scope="module")
def calibrated() -> tuple[Calibration, Analysis]:
    torch.manual_seed(0)
    dense = open_model(tiny_transformer("bert"))
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    feeds = tuple(dense.signature.example(3, 9, seed=i) for i in range(4))
    calibration = Calibration(feeds[:2], feeds[2:3], feeds[3:], dense, {"samples": 12})
    weights = [w for w in dense.weights if w.role == "projection"]
    grams = collect_grams(calibration, weights, silent, {n for b in dense.couplings for n in b.weights})
    couplings = analyze_couplings(dense, dense.couplings, grams)
    analysis = Analysis(analyze_weights(dense, weights, grams), couplings=couplings, grams=grams)
    return calibration, measure_contexts(calibration, measure_sensitivity(calibration, analysis, silent), silent)


def test_everything_is_measured_and_kept(calibrated: tuple[Calibration, Analysis], tmp_path: Path) -> None:
    _, analysis = calibrated
    assert all(len(record.measured) == 2 for record in analysis.weights)
    assert {coupling.structure for coupling in analysis.couplings} == {"product", "neurons", "shared"}
    assert all(coupling.measured for coupling in analysis.couplings)
    assert [context.keep for context in analysis.contexts] == [0.5, 0.3]
    save_analysis(analysis, tmp_path)
    again = load_analysis(tmp_path)
    for before, after in zip(analysis.couplings, again.couplings, strict=True):
        assert (after.group, after.structure, after.measured) == (before.group, before.structure, before.measured)
        assert (after.ranks == before.ranks).all() and (after.errors == before.errors).all()
    assert again.contexts == analysis.contexts and set(again.curvatures) == set(analysis.curvatures)
    for keep in (0.8, 0.5, 0.3):
        plans = [Knapsack().select(each, Budget.params(keep)) for each in (analysis, again)]
        assert plans[0].options == plans[1].options


def test_a_forecast_replaces_all_that_a_plan_does(tmp_path: Path) -> None:
    """Spatial factors, too."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3)).eval()
    np.savez(tmp_path / "x.npz", input=np.random.default_rng(0).standard_normal((8, 4, 10, 10)).astype(np.float32))
    settings = lowrank.Settings(targets=("conv",), calib=str(tmp_path / "x.npz"))
    analysis = lowrank.analyze(module, settings=settings)
    plan = lowrank.select(analysis, 0.4)
    assert any(option.structure == "spatial" for option in plan.options)
    layers = replacements_at(open_model(module), analysis, 0.4)
    assert layers is not None
    changed = changes_of(layers, analysis)
    smaller = [option for option in plan.options if option.structure != "dense"]
    assert set(changed) == {name for option in smaller for name in analysis.groups[option.group].weights}
    assert all(np.isfinite(numbers).all() for numbers, _ in changed.values())


def test_blocks_that_are_remembered_are_not_run(calibrated: tuple[Calibration, Analysis]) -> None:
    calibration, _ = calibrated
    dense = calibration.backend
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    prefix = Prefix(dense.module, dense.signature, calibration.fit)
    assert len(prefix.blocks) > 1
    whole = prefix.run(1)

    def unchanged() -> bool:
        return all(torch.equal(output, whole[name]) for name, output in prefix.run(1).items())

    calls: list[str] = []
    path = prefix.blocks[0]
    first = dense.module.get_submodule(path)
    inner = next(child for child in first.modules() if isinstance(child, torch.nn.Linear))
    handle = inner.register_forward_hook(lambda *_: calls.append(path))
    prefix.advance(1)
    assert len(calls) == len(calibration.fit)
    assert unchanged()
    assert len(calls) == len(calibration.fit)
    prefix.advance(0)
    assert unchanged()
    handle.remove()
    assert len(calls) == len(calibration.fit) + 1


def test_curvature_is_a_second_moment_and_leaves_no_gradients(calibrated: tuple[Calibration, Analysis]) -> None:
    calibration, _ = calibrated
    dense = calibration.backend
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    weights = [w for w in dense.weights if w.role == "projection"]
    found = output_curvature(dense.module, dense.signature, weights, calibration.fit)
    for weight in weights:
        matrix = found[weight.name]
        assert matrix.shape == (weight.rows, weight.rows)
        assert np.allclose(matrix, matrix.T) and np.linalg.eigvalsh(matrix).min() >= -1e-6 * np.trace(matrix)
    assert all(parameter.grad is None for parameter in dense.module.parameters())
    again = output_curvature(dense.module, dense.signature, weights, calibration.fit)
    assert all((again[name] == matrix).all() for name, matrix in found.items())


def test_a_table_is_bent_by_its_head_too() -> None:
    """The curvature of a tied table is that of its lookups and the moment of what its head reads."""
    torch.manual_seed(0)
    model = tiny_transformer("gpt2")
    dense = open_model(model)
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    feeds = [dense.signature.example(3, 9, seed=i) for i in range(3)]
    table = next(w for w in dense.weights if {layer.kind for layer in w.layers} == {"lookup", "linear"})
    lookups = replace(table, layers=tuple(layer for layer in table.layers if layer.kind == "lookup"))
    tied, alone = (output_curvature(dense.module, dense.signature, [w], feeds) for w in (table, lookups))
    seen: list[torch.Tensor] = []
    handle = dense.module.get_submodule("lm_head").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for feed in feeds:
        dense.run(feed)
    handle.remove()
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).double().numpy()
    np.testing.assert_allclose(tied[table.name] - alone[table.name], rows.T @ rows / len(rows), rtol=1e-3, atol=1e-5)
    # Where no logits come out, the head is not what is measured.
    values = replace(dense.signature, outputs=(Output("logits", "values"),))
    hidden = [output_curvature(dense.module, values, [w], feeds) for w in (table, lookups)]
    np.testing.assert_array_equal(hidden[0][table.name], hidden[1][table.name])
    # Frozen tables bend the output no less.
    dense.module.get_parameter(table.name).requires_grad_(False)
    frozen = output_curvature(dense.module, dense.signature, [table], feeds)
    np.testing.assert_allclose(frozen[table.name], tied[table.name], rtol=1e-3, atol=1e-5)


def test_no_weight_is_read_while_a_trial_has_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The next trial is made in another thread meanwhile."""
    swapped, read, inside = ModuleBackend.swapped, ModuleBackend.read, list[str]()

    @contextmanager
    def noted(self: ModuleBackend, changes: Any) -> Iterator[None]:
        with swapped(self, changes):
            inside.extend(changes)
            time.sleep(0.002)
            yield
            inside.clear()

    def checked(self: ModuleBackend, name: str) -> Any:
        assert not inside
        return read(self, name)

    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((40, 5, 16)).astype(np.float32))
    monkeypatch.setattr(ModuleBackend, "swapped", noted)
    monkeypatch.setattr(ModuleBackend, "read", checked)
    analysis = lowrank.analyze(trained_blocks(), settings=lowrank.Settings(calib=str(tmp_path / "x.npz")))
    assert all(record.measured for record in analysis.weights)
