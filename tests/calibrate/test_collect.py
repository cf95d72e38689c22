"""Grams: what the layers really see, in float64, without padding, whatever the batching."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import launched_together, made, tiny_transformer, write_text

from lowrank.artifacts import load_analysis
from lowrank.backends import open_model
from lowrank.backends.inputs import Input, Signature
from lowrank.backends.torch import ModuleBackend
from lowrank.calibrate.collect import collect_grams
from lowrank.calibrate.data import Calibration, load_calibration
from lowrank.calibrate.folds import split_folds
from lowrank.calibrate.sensitivity import measure_sensitivity, reference_of
from lowrank.core.analysis import Analysis, Folds, loss_of
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.directions import directions
from lowrank.core.truncation.gram import Gram
from lowrank.core.weight import Weight
from lowrank.core.weight_analysis import analyze_weight
from lowrank.errors import CalibrationError
from lowrank.progress import silent


@pytest.fixture(scope="module")
def backend(bert_folder: Path) -> ModuleBackend:
    backend = open_model(bert_folder)
    assert isinstance(backend, ModuleBackend)
    return backend


@pytest.fixture(scope="module")
def calibration(backend: ModuleBackend, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    found = load_calibration(backend, write_text(tmp_path_factory.mktemp("text") / "a.txt"))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def weights(backend: ModuleBackend) -> list[Weight]:
    return [w for w in backend.weights if w.role == "projection"]


@pytest.fixture(scope="module")
def grams(backend: ModuleBackend, calibration: Calibration, weights: list[Weight]) -> dict[str, Folds]:
    return collect_grams(calibration, weights, silent)


def test_folds_are_disjoint_and_whole() -> None:
    for count in (1, 2, 5, 9, 10, 37, 100):
        fit, heldout, report = split_folds(count)
        assert fit and report
        assert not set(fit) & set(heldout)
        if count >= 10:
            assert sorted(fit + heldout + report) == list(range(count))


def test_no_batch_holds_padding(calibration: Calibration) -> None:
    for batch in (*calibration.fit, *calibration.heldout, *calibration.report):
        assert (batch["attention_mask"] == 1).all()
        assert (batch["input_ids"] != 0).all()


def test_grams_are_those_of_the_samples_one_by_one(
    backend: ModuleBackend, calibration: Calibration, weights: list[Weight], grams: dict[str, Folds]
) -> None:
    """Whatever the batching, and from both sides: the moments of the rows that each layer saw."""
    seen: dict[str, list[torch.Tensor]] = {w.name: [] for w in weights}
    handles = []
    for w in weights:
        layer = backend.module.get_submodule(w.layers[0].name)
        wanted = seen[w.name]
        handles.append(layer.register_forward_pre_hook(lambda _, args, wanted=wanted: wanted.append(args[0])))
    with torch.no_grad():
        for batch in calibration.fit:
            for i in range(len(batch["input_ids"])):
                backend.run({k: v[i : i + 1] for k, v in batch.items()})
    for handle in handles:
        handle.remove()
    for w in weights:
        x = torch.cat([t.reshape(-1, w.cols) for t in seen[w.name]]).double().numpy()
        gram = grams[w.name].fit
        rows = x if gram.side == "input" else x @ backend.read(w.name).T
        assert gram.tokens == len(x)
        assert gram.energy == pytest.approx((x**2).sum(), rel=1e-5)
        assert np.allclose(gram.moment, rows.T @ rows, rtol=1e-4, atol=1e-5 * np.abs(rows.T @ rows).max())


def test_sides_and_sharing(weights: list[Weight], grams: dict[str, Folds]) -> None:
    for w in weights:
        assert grams[w.name].fit.side == ("output" if w.rows < w.cols else "input")
    q, k, v = (grams[f"encoder.layer.0.attention.self.{n}.weight"] for n in ("query", "key", "value"))
    assert q is k is v
    assert grams["encoder.layer.0.attention.output.dense.weight"] is not q


def test_infinite_activations_are_counted(
    backend: ModuleBackend, calibration: Calibration, weights: list[Weight]
) -> None:
    table = backend.module.get_input_embeddings().weight
    kept = table.data.clone()
    table.data[5] = float("nan")
    try:
        found = collect_grams(calibration, weights, silent)
    finally:
        table.data = kept
    first = found[weights[0].name].fit
    assert first.nonfinite > 0 and np.isfinite(first.moment).all()


def test_sensitivity_predicts_what_truncating_one_weight_does(
    backend: ModuleBackend, calibration: Calibration, weights: list[Weight], grams: dict[str, Folds]
) -> None:
    records = tuple(analyze_weight(w, backend.read(w.name), grams[w.name]) for w in weights)
    before = {k: v.clone() for k, v in backend.module.state_dict().items()}
    measured = measure_sensitivity(calibration, Analysis(records, grams=grams), silent).weights
    assert all(torch.equal(v, before[k]) for k, v in backend.module.state_dict().items())
    assert all(r.sensitivity > 0 for r in measured)
    # What is read off the measured pairs is what happens when one weight alone is truncated, at another rank too.
    record = measured[4]
    rank = record.weight.full_rank // 2
    matrix = backend.read(record.weight.name)
    factors = directions(matrix, grams[record.weight.name].fit).truncate(matrix, rank)
    small = backend.rewrite({record.weight.name: Replacement("two_factor", factors)})
    dense, after = ([model.outputs(feed) for feed in calibration.heldout] for model in (backend, small))
    lost = reference_of(backend, calibration.heldout, dense).loss(after)
    predicted = loss_of(record.error_curve[rank : rank + 1], record.measured)[0]
    assert lost == pytest.approx(predicted, rel=0.5)


def test_npz_inputs(backend: ModuleBackend, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 20, (30, 6))
    ones, zeros = np.ones_like(ids), np.zeros_like(ids)
    np.savez(tmp_path / "a.npz", input_ids=ids, attention_mask=ones, token_type_ids=zeros)
    found = load_calibration(backend, tmp_path / "a.npz")
    assert found is not None
    assert sum(len(b["input_ids"]) for b in found.fit) == 24
    np.savez(tmp_path / "b.npz", pixels=rng.standard_normal((3, 4)))
    with pytest.raises(CalibrationError, match="does not run on its arrays pixels"):
        load_calibration(backend, tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", input_ids=ids, attention_mask=ones[:3])
    with pytest.raises(CalibrationError, match="same number of samples"):
        load_calibration(backend, tmp_path / "c.npz")
    (tmp_path / "d.npz").write_bytes(b"PK no")
    with pytest.raises(CalibrationError, match="cannot be read as .npz"):
        load_calibration(backend, tmp_path / "d.npz")


def test_text_for_a_model_without_tokenizer(tmp_path: Path) -> None:
    backend = open_model(tiny_transformer("vit"))
    assert isinstance(backend, ModuleBackend)
    assert load_calibration(backend, None) is None
    with pytest.raises(CalibrationError, match="reads pixel_values, not text"):
        load_calibration(backend, write_text(tmp_path / "a.txt"))


def test_padding_in_npz_inputs_stays_out_of_the_grams(
    backend: ModuleBackend, weights: list[Weight], tmp_path: Path
) -> None:
    ids = np.random.default_rng(0).integers(4, 20, (24, 6))
    mask = np.ones_like(ids)
    mask[:, 3:] = 0
    np.savez(tmp_path / "a.npz", input_ids=ids, attention_mask=mask, token_type_ids=np.zeros_like(ids))
    np.savez(tmp_path / "b.npz", **{k: v[:, :3] for k, v in np.load(tmp_path / "a.npz").items()})
    grams = []
    for name in ("a.npz", "b.npz"):
        found = load_calibration(backend, tmp_path / name)
        assert found is not None
        grams.append(collect_grams(found, weights, silent))
    for weight in weights:
        padded, bare = (g[weight.name].fit for g in grams)
        assert padded.tokens == bare.tokens
        assert np.allclose(padded.moment, bare.moment, rtol=1e-3, atol=1e-4 * np.abs(bare.moment).max())


def test_sensitivity_of_square_transposed_layers() -> None:
    """A square Conv1D stores its matrix transposed, which its shape does not show."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    conv, linear = torch.nn.Sequential(), torch.nn.Sequential()
    for i in range(2):
        c, plain = Conv1D(16, 16), torch.nn.Linear(16, 16)
        torch.nn.init.normal_(c.weight)
        plain.weight.data, plain.bias.data = c.weight.data.T.contiguous(), c.bias.data
        conv.add_module(f"layer{i}", c)
        linear.add_module(f"layer{i}", plain)
    found = []
    for module in (conv, linear):
        backend = open_model(module)
        assert isinstance(backend, ModuleBackend)
        signature = Signature((Input("input", "float32", ("batch", 16)),), positional=1)
        batches = tuple(
            {"input": np.random.default_rng(s).standard_normal((50, 16)).astype("float32")} for s in range(2)
        )
        calibration = Calibration(batches, batches, batches, backend.fed_with(signature), {"samples": 100})
        grams = collect_grams(calibration, backend.weights, silent)
        records = tuple(analyze_weight(w, backend.read(w.name), grams[w.name]) for w in backend.weights)
        measured = measure_sensitivity(calibration, Analysis(records, grams=grams), silent)
        found.append([r.sensitivity for r in measured.weights])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.slow
def test_processes_share_the_batches(bert_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    text = write_text(tmp_path / "text.txt", 60)
    for start, run in (([], "alone"), (launched_together(), "together")):
        command = [sys.executable, *start, "-m", "lowrank", "analyze", str(bert_folder), "--calib", str(text)]
        # One thread for each, as accelerate gives: forward passes in float32 depend on their number.
        alike = {**os.environ, "OMP_NUM_THREADS": "1"}
        command += ["-o", str(tmp_path / run)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=alike)
        assert done.returncode == 0, done.stderr[-3000:]
    alone, together = (load_analysis(tmp_path / run) for run in ("alone", "together"))
    assert set(alone.grams) == set(together.grams)
    for name, folds in alone.grams.items():
        for one, two in ((folds.fit, together.grams[name].fit), (folds.heldout, together.grams[name].heldout)):
            assert (one.tokens, one.nonfinite, one.side) == (two.tokens, two.nonfinite, two.side)
            # The same numbers in another order.
            assert np.abs(one.moment - two.moment).max() <= 1e-12 * np.abs(one.moment).max()
    # Files hold one triangle of a moment; what was made of the other one shows in the curves.
    for one, two in zip(alone.weights, together.weights, strict=True):
        assert np.allclose(one.error_curve, two.error_curve, rtol=1e-9, atol=1e-12)


def test_a_model_elsewhere_is_watched_there(bert_folder: Path) -> None:
    """`cpu:0` takes the way of a GPU."""
    backend: Any = open_model(bert_folder)
    feed = backend.signature.example(2, 8)
    found: list[dict[str, Gram]] = []
    for device in ("cpu", "cpu:0"):
        seen: dict[str, Gram] = {}
        sides = {weight.name: "input" for weight in backend.weights}
        with backend.watching(sides, device) as run:
            run(feed, lambda name, moment, seen=seen: seen.update({name: made(moment)}))
        found.append(seen)
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(found[0][name].moment, found[1][name].moment) for name in found[0])
