"""The sets that results are judged on beside the user's own data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import tiny_bert_folder, tiny_transformer
from torch import nn

import lowrank
from lowrank.backends.inputs import Feed
from lowrank.calibrate.changed_sets import changed_sets, with_changes
from lowrank.calibrate.data import load_calibration
from lowrank.calibrate.sets import judging_sets
from lowrank.evaluate.judges import Judges


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def by_name(backend, feeds: tuple[Feed, ...]) -> dict[str, list[Feed]]:
    return {each.name: list(each.feeds) for each in changed_sets(backend, feeds) if each.feeds}


def test_pictures_are_darker_and_noisier(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).standard_normal((30, 3, 16, 16)).astype(np.float32)
    path = saved(tmp_path / "a.npz", pixel_values=pixels)
    calibration = load_calibration(lowrank.open_model(tiny_transformer("vit")), path)
    assert calibration is not None
    own, *others = judging_sets(calibration.backend, calibration)
    assert (own.name, own.origin, own.feeds) == ("your data", "own", calibration.report)
    sets = {each.name: each.feeds for each in others if each.origin == "changed"}
    assert list(sets) == ["darker", "noisier"]
    before = np.concatenate([feed["pixel_values"] for feed in calibration.report])
    darker, noisier = (np.concatenate([feed["pixel_values"] for feed in sets[name]]) for name in sets)
    low = before.min((0, 2, 3))[:, None, None]
    np.testing.assert_allclose(darker - low, 0.5 * (before - low), atol=1e-5)
    assert 0.2 < (noisier - before).std() / before.std() < 0.3
    again = {each.name: each.feeds for each in judging_sets(calibration.backend, calibration)}
    np.testing.assert_array_equal(again["noisier"][0]["pixel_values"], sets["noisier"][0]["pixel_values"])


@pytest.mark.parametrize("length", [8, 40])
def test_ids_are_shorter_and_joined_as_far_as_the_model_reads(length: int, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(4, 14, (40, length))
    path = saved(tmp_path / "a.npz", input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    # Its tokenizer knows no word of English, so that no text fits.
    calibration = load_calibration(lowrank.open_model(tiny_bert_folder(tmp_path / "model")), path)
    assert calibration is not None
    sets = by_name(calibration.backend, calibration.report)
    judges = Judges(calibration.backend, judging_sets(calibration.backend, calibration))
    assert {"your data", *sets} == {each.name for each in judges.sets}
    note, few = judges.notes
    assert few.startswith("judged on 4 samples, which are few")
    assert "short texts (" in note and "passages of 64 tokens (" in note and "% of it is unknown to the model's" in note
    assert ("joined (two samples in one are longer" in note) == (2 * length > 64)
    assert ("joined" in sets) == (2 * length <= 64)
    assert all(feed["input_ids"].shape[1] == length // 2 for feed in sets["shorter"])
    if "joined" in sets:
        feed, own = sets["joined"][0], calibration.report[0]
        assert feed["attention_mask"].shape == (len(own["input_ids"]) // 2, 2 * length)
        np.testing.assert_array_equal(feed["input_ids"][0], own["input_ids"][:2].reshape(-1))


@pytest.mark.parametrize(("length", "others"), [(8, {4, 16}), (40, {20})])
def test_each_batch_to_learn_from_comes_once_more_changed(length: int, others: set[int], tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(4, 14, (400, length))
    path = saved(tmp_path / "a.npz", input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    calibration = load_calibration(lowrank.open_model(tiny_bert_folder(tmp_path / "model")), path)
    assert calibration is not None and calibration.is_own_alone
    fit = calibration.fit
    made = with_changes(calibration.backend, fit)
    assert all(one is other for one, other in zip(made, fit, strict=False)) and len(made) == 2 * len(fit)
    assert {feed["input_ids"].shape[1] for feed in made[len(fit) :]} == others


def test_a_change_that_a_model_does_not_run_on_is_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", input=np.ones((20, 6), np.float32))
    backend = lowrank.open_model(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)))
    calibration = load_calibration(backend, path)
    assert calibration is not None
    made = with_changes(calibration.backend, calibration.fit)
    noisier = [feed["input"] for feed in made[len(calibration.fit) :]]
    assert len(noisier) == len(calibration.fit) and all(values.shape[1] == 6 for values in noisier)
