"""The LoRA residual: on factored layers with the real PEFT, folded, and in ONNX Runtime."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import two_factors
from test_healing import cut, finished, split

from lowrank.backends.inputs import Signature
from lowrank.backends.torch.inputs import call
from lowrank.backends.torch.layers import put
from lowrank.backends.torch.lora import residuals, with_adapter
from lowrank.backends.torch.module import ModuleBackend
from lowrank.calibrate.data import Calibration
from lowrank.calibrate.refit import sequential_refit
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.directions import directions
from lowrank.core.truncation.pivoted import pivot
from lowrank.edge.adapters import check_adapter, export_adaptable, write_adapter
from lowrank.errors import HealingError, UnsupportedModel
from lowrank.healing.adapter import Adapter, adaptable, attach, fold
from lowrank.healing.discarded import begin_with_the_discarded
from lowrank.healing.phases import Healing
from lowrank.healing.preparation import prepare
from lowrank.healing.training import Initial, Training
from lowrank.nn import Adaptable
from lowrank.progress import silent

peft: Any = pytest.importorskip("peft")


def pivoted(name: str) -> tuple[ModuleBackend, ModuleBackend, list[Any]]:
    """A model whose projections are pivoted at half rank."""
    dense, _, feeds = cut(name)
    made = {}
    for weight in dense.weights:
        if weight.is_linear and weight.role == "projection":
            matrix = dense.read(weight.name)
            made[weight.name] = Replacement(
                "pivoted", pivot(directions(matrix).truncate(matrix, weight.full_rank // 2))
            )
    return dense, dense.rewrite(made), feeds


def trained(kind: str, name: str, **more: Any) -> tuple[ModuleBackend, ModuleBackend, Healing, Adapter, list[Any]]:
    dense, small, feeds = cut(name) if kind == "two_factor" else pivoted(name)
    healing = finished(prepare(dense, small, split(feeds), Training(steps=60, adapter=2, **more)))
    assert healing.adapter is not None
    return dense, small, healing, healing.adapter, feeds


def output(backend: ModuleBackend, module: torch.nn.Module, feed: Any) -> torch.Tensor:
    assert isinstance(backend.signature, Signature)
    with torch.no_grad():
        return call(backend.signature, module, feed)[backend.signature.output]


def adapted(backend: ModuleBackend, made: Any) -> torch.nn.Module:
    module = copy.deepcopy(backend.module)
    for path, (a, b) in made.items():
        put(module, path, Adaptable(module.get_submodule(path), torch.from_numpy(a), torch.from_numpy(b)))
    return module


@pytest.mark.parametrize("kind", ["two_factor", "pivoted"])
@pytest.mark.parametrize("initial", ["discarded", "zero"])
def test_an_adapter_heals_and_leaves_the_model_beside_it(kind: str, initial: Initial) -> None:
    dense, small, feeds = cut("bert") if kind == "two_factor" else pivoted("bert")
    before = {name: p.detach().clone() for name, p in small.module.named_parameters()}
    training = Training(steps=60, adapter=2, initial=initial)
    assert finished(prepare(dense, small, split(feeds), training)).healed().kept
    assert all(torch.equal(p, before[name]) for name, p in small.module.named_parameters())


def test_an_adapter_trained_elsewhere_is_here_afterwards() -> None:
    _, small, healing, adapter, _ = trained("two_factor", "bert", device="cpu:0")
    assert healing.target is not healing.task.student.module
    loss = healing.task.judge_other(adapted(small, adapter.residuals()))
    assert loss == pytest.approx(healing.progress.best, rel=1e-3)
    assert loss < 0.9 * healing.progress.before


@pytest.mark.parametrize("kind", ["two_factor", "pivoted"])
def test_peft_loads_it_on_the_compressed_model(tmp_path: Path, kind: str) -> None:
    _, small, healing, adapter, feeds = trained(kind, "bert")
    adapter.peft.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(small.module), str(tmp_path))
    wanted = output(small, healing.task.student.module, feeds[0])
    torch.testing.assert_close(output(small, loaded, feeds[0]), wanted, rtol=1e-5, atol=1e-6)
    assert (wanted - output(small, small.module, feeds[0])).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["two_factor", "pivoted"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_folding_by_concatenation_is_exact(kind: str, name: str) -> None:
    dense, small, _, adapter, feeds = trained(kind, name)
    made = adapter.residuals()
    wanted = output(small, adapted(small, made), feeds[0])
    ranks = {key: record["rank"] for key, record in small.replaced.items()}
    whole = fold(small, dense, made, None)
    torch.testing.assert_close(output(whole, whole.module, feeds[0]), wanted, rtol=1e-4, atol=1e-5)
    weights = {weight.name: weight for weight in dense.weights}
    for key, rank in ranks.items():
        assert whole.replaced[key]["rank"] == min(rank + 2, weights[key].full_rank)


def test_folding_back_to_the_rank_keeps_size_and_gains(tmp_path: Path) -> None:
    dense, small, healing, adapter, feeds = trained("two_factor", "bert")
    params, before = small.params, healing.progress.before
    cut_back = fold(small, dense, adapter.residuals(), feeds[:4])
    assert cut_back.params == params
    assert healing.task.judge_other(cut_back.module) < before
    cut_back.save(tmp_path)
    again = cut_back.reloaded(tmp_path)
    np.testing.assert_array_equal(again.run(feeds[0]), cut_back.run(feeds[0]))


@pytest.mark.parametrize("fold_as", ["exact", "rank"])
def test_what_is_tied_has_no_adapter_to_fold(fold_as: Any) -> None:
    dense, _, feeds = cut("gpt2")
    (tied,) = (w for w in dense.weights if len(w.layers) > 1)
    made = {w.name: two_factors(dense.read(w.name), 8) for w in dense.weights if w.role == "projection" or w is tied}
    small = dense.rewrite(made)
    adapter = finished(prepare(dense, small, split(feeds), Training(steps=20, adapter=2, fold=fold_as))).adapter
    assert adapter and adapter.shapes and not {layer.name for layer in tied.layers} & set(adapter.shapes)
    whole = fold(small, dense, adapter.residuals(), feeds if fold_as == "rank" else None)
    assert (
        whole.module.get_submodule("lm_head").right.weight is whole.module.get_submodule("transformer.wte").right.weight
    )


def test_an_exact_fold_that_would_reach_the_full_rank_is_refused() -> None:
    dense, small, feeds = pivoted("bert")
    with pytest.raises(HealingError, match="full rank 32.*smaller --adapter"):
        prepare(dense, small, split(feeds), Training(steps=20, adapter=16, fold="exact"))


def test_beginning_with_all_that_was_discarded_is_the_dense_model() -> None:
    dense, small, feeds = cut("bert", share=0.75)
    module = copy.deepcopy(small.module)
    attach(module, adaptable(module, [x for r in small.replaced.values() for x in r["layers"]]), 8)
    assert begin_with_the_discarded(module, dense, small, feeds) == len(small.replaced)
    np.testing.assert_allclose(output(dense, module, feeds[0]), dense.run(feeds[0]), atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_beginning_with_the_discarded_gains_after_a_refit_too(name: str) -> None:
    """A refit has made up for some of what was left out, which must not be added once more."""
    dense, _, feeds = cut(name)
    chosen = [w for w in dense.weights if w.is_linear and w.role == "projection"]
    made = {w.name: two_factors(dense.read(w.name), max(1, w.full_rank // 4)) for w in chosen}
    data = Calibration(tuple(feeds[:4]), tuple(feeds[4:5]), (), dense, {})
    unmeasured: Any = SimpleNamespace(curvatures={})
    small = dense.rewrite(sequential_refit(data, dense.rewrite(made), made, unmeasured, silent))
    task = prepare(dense, small, split(feeds), Training(steps=40, adapter=2)).task
    assert task.judge() < 0.97 * task.before


@pytest.mark.slow
def test_two_adapters_on_one_session_give_two_right_answers(tmp_path: Path) -> None:
    import onnxruntime

    _, small, _, first, feeds = trained("two_factor", "bert")
    assert isinstance(small.signature, Signature)
    rng = np.random.default_rng(0)
    second = {
        path: (rng.standard_normal((n, 3)).astype(np.float32), 0.1 * rng.standard_normal((3, m)).astype(np.float32))
        for path, (n, m) in first.shapes.items()
    }
    graph = tmp_path / "model.onnx"
    export_adaptable(small.module, small.signature, first.shapes, graph)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), quiet, providers=["CPUExecutionProvider"])
    answers = []
    for label, made in (("first", first.residuals()), ("second", second)):
        path = tmp_path / f"{label}.onnx_adapter"
        write_adapter(made, path)
        check_adapter(small.module, small.signature, made, graph, path)
        adapter, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
        adapter.Load(str(path))
        options.add_active_adapter(adapter)
        answers.append(session.run(None, dict(feeds[0]), options)[0])
        np.testing.assert_allclose(answers[-1], output(small, adapted(small, made), feeds[0]), atol=1e-5)
    answers.append(session.run(None, dict(feeds[0]))[0])
    np.testing.assert_allclose(answers[-1], small.run(feeds[0]), atol=1e-5)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in ((answers[0], answers[1]), (answers[0], answers[2])))


def test_an_adapter_made_elsewhere_is_merged_or_kept(tmp_path: Path) -> None:
    dense, small, feeds = cut("bert")
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["query", "value"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(dense.module), config)
    model.save_pretrained(str(tmp_path))
    from lowrank.backends import Opening
    from lowrank.backends.torch.open import open_module

    merged = open_module(dense.module, Opening(lora=str(tmp_path)))
    np.testing.assert_allclose(merged.run(feeds[0]), output(dense, model, feeds[0]), atol=1e-5)
    assert merged.source["fingerprint"] != dense.source["fingerprint"]
    assert {w.name for w in merged.weights} == {w.name for w in dense.weights}
    beside = with_adapter(copy.deepcopy(small.module), tmp_path)
    made = residuals(beside)
    assert len(made) == 2
    torch.testing.assert_close(
        output(small, beside, feeds[0]), output(small, adapted(small, made), feeds[0]), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(UnsupportedModel, match="does not fit"):
        with_adapter(torch.nn.Linear(3, 3), tmp_path)
    with pytest.raises(UnsupportedModel, match="holds no adapter_config"):
        with_adapter(dense.module, tmp_path / "none")
