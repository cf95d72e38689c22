"""Sums over batches that threads run: the order of the batches, whatever the threads do; and replicas of modules."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from builders import trained_blocks
from onnx import numpy_helper
from torch import nn

import lowrank
from lowrank.backends import open_model
from lowrank.backends.base import signature_of
from lowrank.backends.memory import batches_at_once
from lowrank.backends.moment_sums import MomentSums, Observe, sum_moments
from lowrank.backends.torch import ModuleBackend
from lowrank.backends.torch.replicas import can_be_copied, jobs_for, replica
from lowrank.core.truncation.gram import Gram, moment_of
from lowrank.healing.training import Training


def gram(value: float) -> Gram:
    return Gram("input", np.full((2, 2), value), 1, value, total=np.full(2, value))


def zeros(*names: str) -> dict[str, Gram]:
    return {name: Gram("input", np.zeros((2, 2)), total=np.zeros(2)) for name in names}


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("tokens", [2, 40])
def test_tokens_are_summed_as_their_grams_are(tokens: int, jobs: int) -> None:
    """Whether a batch has more tokens than channels or fewer; with what is above the diagonal."""
    rows = np.random.default_rng(0).standard_normal((12, tokens, 7))

    def watch(number: int, observe: Observe) -> None:
        observe("a", moment_of("input", rows[number]))

    found = sum_moments({"a": Gram("input", np.zeros((7, 7)), total=np.zeros(7))}, range(12), watch, jobs)["a"]
    every = rows.reshape(-1, 7)
    assert np.allclose(found.moment, every.T @ every) and np.array_equal(found.moment, found.moment.T)
    assert found.tokens == len(every) and found.total is not None and np.allclose(found.total, every.sum(0))


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_sums_do_not_depend_on_threads(jobs: int) -> None:
    """Numbers of such different sizes have another sum in another order."""
    rng = np.random.default_rng(0)
    values, waits = 10.0 ** rng.uniform(-12, 12, (40, 3)), rng.uniform(0, 2e-3, (40, 3))

    def watch(number: int, observe: Observe) -> None:
        for i, name in enumerate(("a", "b", "a")):
            time.sleep(waits[number, i])
            # The second is shown by some batches alone.
            if name == "a" or number % 3:
                observe(name, gram(values[number, i]))

    found = sum_moments(zeros("a", "b"), range(40), watch, jobs)
    wanted: dict[str, list[float]] = {"a": [], "b": []}
    for number in range(40):
        wanted["a"] += [values[number, 0], values[number, 2]]
        wanted["b"] += [values[number, 1]] if number % 3 else []
    for name, each in wanted.items():
        assert found[name].moment[0, 0] == sum(each) and found[name].tokens == len(each)
        assert found[name].total is not None and found[name].total[0] == found[name].energy == sum(each)


def test_a_batch_that_fails_holds_nobody_up() -> None:
    def watch(number: int, observe: Observe) -> None:
        observe("a", gram(1.0))
        if number == 2:
            raise ValueError("no")
        observe("b", gram(1.0))

    with pytest.raises(ValueError, match="no"):
        sum_moments(zeros("a", "b"), range(30), watch, 4)


def test_a_batch_that_is_alone_waits_for_nobody() -> None:
    sums = MomentSums(zeros("a"))
    with sums.batch(0) as observe:
        observe("a", gram(2.0))
        observe("a", gram(3.0))
    assert sums.grams["a"].energy == 5


def test_a_replica_shares_numbers_and_nothing_else() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    other, x = replica(module), torch.ones(2, 3)
    calls: list[int] = []
    other.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        module[0].weight.zero_()
        assert torch.equal(module(x), other(x)) and calls == [1]
    assert all(a is b for a, b in zip(module.parameters(), other.parameters(), strict=True))
    assert all(a is b for a, b in zip(module.buffers(), other.buffers(), strict=True))


def test_as_many_batches_at_once_as_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowrank.backends.memory.cores", lambda: 16)
    monkeypatch.setattr("lowrank.backends.memory.available_memory", lambda: 8 << 30)
    heads = {1536: 16, 50_000: 2, 250_000: 1}
    assert {width: batches_at_once(width) for width in heads} == heads
    for width, jobs in heads.items():
        # A table is looked up, and gives no row for each of its entries; a head that is tied to it does.
        table, head = nn.Embedding(width, 8), nn.Linear(8, width, bias=False)
        assert jobs_for(nn.Sequential(table, nn.Linear(8, 8))) == 16
        head.weight = table.weight
        assert jobs_for(nn.Sequential(table, head)) == jobs


class Stream(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lines = nn.Linear(16, 16), (line for line in "abc")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_what_cannot_be_copied_runs_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowrank.backends.memory.cores", lambda: 3)
    opened = open_model(nn.Sequential(nn.Linear(16, 16)).eval())
    assert isinstance(opened, ModuleBackend) and opened.jobs == 3
    module = Stream().eval()
    alone = replace(opened, module=module)
    assert not can_be_copied(module) and alone.jobs == 1
    feeds = [signature_of(opened).example(2, 4, seed) for seed in range(5)]
    wanted = [alone.outputs(feed) for feed in feeds]
    for found, one in zip(alone.outputs_of(feeds), wanted, strict=True):
        assert all(np.array_equal(found[name], one[name]) for name in one)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_result_does_not_depend_on_the_number_of_threads(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(60, 5, 16)).astype(np.float32))
    settings = lowrank.Settings(calib=str(tmp_path / "x.npz"))
    found: list[list[np.ndarray]] = []
    for number in (1, 3):
        for name, part in list(sys.modules.items()):
            if name.startswith("lowrank.") and hasattr(part, "cores"):
                monkeypatch.setattr(part, "cores", lambda number=number: number)
        torch.manual_seed(0)
        module = trained_blocks()
        model: Any = module
        if kind == "onnx":
            if not (tmp_path / "m").exists():
                lowrank.export(model, output=tmp_path / "m")
            model = tmp_path / "m" / "model.onnx"
        run = tmp_path / str(number)
        report = lowrank.compress(model, 0.5, output=run, settings=settings, latency=False)
        if kind == "torch":
            report = lowrank.heal(run, Training(steps=20), model=module, latency=False)
        found.append([numpy_helper.to_array(t) for t in onnx.load(run / "model.onnx").graph.initializer])
        assert report.quality is not None
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
