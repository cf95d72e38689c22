"""Weights that are stored as parts: what a state dict is factored by is what the layer applies."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import lowrank
from lowrank.backends import open_model
from lowrank.backends.torch import ModuleBackend, StateDictBackend
from lowrank.backends.torch.products import multiplied
from lowrank.core.selection.knapsack import Knapsack
from lowrank.inspection import inspect
from lowrank.pipeline import Settings

Wrap = Callable[[nn.Module], nn.Module]


class Doubled(nn.Module):
    """A parametrization that no name tells."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


KNOWN: dict[str, Wrap] = {
    "weight_norm": weight_norm,
    "weight_norm of inputs": lambda layer: weight_norm(layer, dim=1),
    "weight_norm of all": lambda layer: weight_norm(layer, dim=None),  # pyright: ignore[reportArgumentType]
    "weight_norm, parametrized": parametrizations.weight_norm,
    "spectral_norm": spectral_norm,
    "spectral_norm, parametrized": parametrizations.spectral_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}
LEFT: dict[str, Wrap] = {
    "orthogonal": parametrizations.orthogonal,
    "own": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    "two": lambda layer: parametrizations.spectral_norm(parametrizations.spectral_norm(layer)),
}


def trained(wrap: Wrap) -> nn.Sequential:
    """Two layers whose norms, gains and singular vectors are not those that they start with."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(wrap(nn.Linear(12, 20)), nn.Tanh(), wrap(nn.Linear(20, 12)), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(8):
        x = torch.randn(16, 12)
        optimizer.zero_grad()
        (model(x) - x[:, :3].sin()).pow(2).mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("weight_v", "original1")):
                tensor *= torch.exp(torch.randn(len(tensor), 1))
        model(torch.randn(2, 12))
    return model


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_product_is_the_weight(kind: str, dtype: torch.dtype) -> None:
    model = trained(KNOWN[kind]).to(dtype)
    with torch.no_grad():
        model(torch.randn(2, 12, dtype=dtype))
    tensors, merged = multiplied(model.state_dict())
    assert [product.name for product in merged] == ["0.weight", "2.weight"]
    assert sorted(tensors) == sorted(f"{i}.{key}" for i in (0, 2, 3) for key in ("weight", "bias"))
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[dtype]
    for i in (0, 2):
        weight = model[i].weight
        assert isinstance(weight, torch.Tensor) and tensors[f"{i}.weight"].dtype == dtype
        assert (tensors[f"{i}.weight"] - weight).norm() <= tolerance * weight.norm()


@pytest.mark.parametrize("kind", KNOWN)
def test_a_state_dict_of_parts_is_factored_by_its_products(tmp_path: Path, kind: str) -> None:
    model = trained(KNOWN[kind])
    torch.save(model.state_dict(), tmp_path / "m.pt")
    report = lowrank.compress(
        tmp_path / "m.pt",
        0.6,
        output=tmp_path / "run",
        settings=Settings(calib="none"),
        selector=Knapsack(structures=("two_factor",)),
    )
    assert any("stored as parts" in note for note in report.notes)
    small = lowrank.load(tmp_path / "run")
    assert isinstance(small, dict)
    factored = [name.removesuffix(".left.weight") for name in small if name.endswith(".left.weight")]
    assert set(factored) & {"0", "2"}
    for stem in factored:
        dense = model[int(stem)].weight.detach()
        assert isinstance(dense, torch.Tensor)
        lost = (small[f"{stem}.left.weight"] @ small[f"{stem}.right.weight"] - dense).norm() / dense.norm()
        assert float(lost) == pytest.approx(report.error.per_weight[f"{stem}.weight"], rel=1e-3)
    assert inspect(tmp_path / "m.pt").facts["products"][0]["weight"] == "0.weight"


@pytest.mark.parametrize("kind", LEFT)
def test_what_no_name_tells_is_left_with_the_reason(tmp_path: Path, kind: str) -> None:
    torch.save(trained(LEFT[kind]).state_dict(), tmp_path / "m.pt")
    backend = open_model(tmp_path / "m.pt")
    assert isinstance(backend, StateDictBackend)
    assert [weight.name for weight in backend.weights] == ["3.weight"]
    reasons = {skip.reason for skip in backend.skips}
    assert any("0.weight, which only its module computes" in reason for reason in reasons)


def test_parts_of_convolutions_stay(tmp_path: Path) -> None:
    conv = parametrizations.weight_norm(nn.Conv1d(4, 6, 3))
    state = conv.state_dict()
    tensors, merged = multiplied(state)
    assert not merged and tensors.keys() == state.keys()


@pytest.mark.parametrize("kind", [*KNOWN, *LEFT])
def test_a_module_keeps_the_parts_of_its_layers_with_the_reason(kind: str) -> None:
    backend = opened(trained(KNOWN.get(kind) or LEFT[kind]))
    assert [weight.name for weight in backend.weights] == ["3.weight"]
    assert all("remove_parametrizations" in skip.reason for skip in backend.skips)


def opened(module: nn.Module) -> ModuleBackend:
    """As `--arch` opens it, whose hooks stay."""
    return ModuleBackend(module, {}, "it is not run", {"kind": "module"})
