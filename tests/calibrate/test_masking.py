"""Masked language models are known by what they do, and fed with masks; only masked tokens count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import OneByOne, tiny_bert_folder, tiny_config, write_text, write_tokenizer

import lowrank
from lowrank.backends.base import signature_of
from lowrank.calibrate.data import load_calibration, training_batches
from lowrank.calibrate.judging_set import JudgingSet
from lowrank.calibrate.masking import with_mask_token
from lowrank.calibrate.sets import judging_sets
from lowrank.evaluate.fidelity import Judge
from lowrank.evaluate.judges import Judges


def with_mask(folder: Path) -> int:
    """A mask in the tokenizer of a folder; its number."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    mask = len(content["model"]["vocab"])
    content["model"]["vocab"]["[MASK]"] = mask
    content["added_tokens"].append({**content["added_tokens"][0], "id": mask, "content": "[MASK]"})
    path.write_text(json.dumps(content))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "mask_token": "[MASK]"}))
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from transformers import BertForMaskedLM

    BertForMaskedLM(tiny_config()).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    return tmp_path / "model"


def test_a_masked_language_model_is_judged_by_what_it_fills_in(folder: Path, tmp_path: Path) -> None:
    mask = with_mask(folder)
    calibration = load_calibration(lowrank.open_model(folder), write_text(tmp_path / "text.txt"))
    assert calibration is not None
    dense, signature = calibration.backend, signature_of(calibration.backend)
    assert signature.mask_token == mask
    for feed in (*calibration.fit, *calibration.heldout, *calibration.report):
        masked = feed["input_ids"] == mask
        assert (signature.counted(feed) == masked).all()
        assert (masked.sum(1) == np.maximum(1, np.round(0.15 * masked.shape[1]))).all()

    class Elsewhere(OneByOne):
        """The same model, but for what it says where nothing is masked."""

        def outputs(self, feed):
            noise = np.random.default_rng(0).standard_normal((*feed["input_ids"].shape, 1))
            return {"logits": dense.run(feed) * np.where((feed["input_ids"] == mask)[..., None], 1, noise)}

    (found,) = Judge(dense, calibration.report).against(Elsewhere())
    assert found.figures["agreement"] == 1
    # The same samples have the same masks, so that those that are judged by are found again and left out.
    aside = {row.tobytes() for feed in calibration.report for row in feed["input_ids"]}
    learned = training_batches(calibration, tmp_path / "text.txt")
    assert not aside & {row.tobytes() for feed in learned for row in feed["input_ids"]}
    for each in judging_sets(dense, calibration):
        assert each.origin == "changed" or all((f["input_ids"] == mask).any(1).all() for f in each.feeds)


def test_ids_in_a_file_are_masked_alike(folder: Path, tmp_path: Path) -> None:
    mask = with_mask(folder)
    ids = np.random.default_rng(0).integers(4, 14, (20, 8))
    ids[3, 2] = mask
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    np.savez(tmp_path / "a.npz", **arrays)
    calibration = load_calibration(lowrank.open_model(folder), tmp_path / "a.npz")
    assert calibration is not None and signature_of(calibration.backend).mask_token == mask
    rows = {tuple(row) for feed in calibration.fit for row in feed["input_ids"]}
    assert all(row.count(mask) == 1 for row in rows) and tuple(ids[3]) in rows


def test_what_cannot_be_run_is_left_unmasked(folder: Path) -> None:
    with_mask(folder)
    streamed = lowrank.open_model(folder, streamed=True)
    assert with_mask_token(streamed) is streamed


def test_ids_without_a_tokenizer_are_not_masked_and_it_is_said(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    ids = np.random.default_rng(0).integers(4, 14, (8, 8))
    np.savez(tmp_path / "a.npz", input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    calibration = load_calibration(lowrank.open_model(folder), tmp_path / "a.npz")
    assert calibration is not None and "nothing is masked" in calibration.notes[0]


def test_a_set_in_which_nothing_counts_is_left_out(folder: Path, tmp_path: Path) -> None:
    mask = with_mask(folder)
    calibration = load_calibration(lowrank.open_model(folder), write_text(tmp_path / "text.txt"))
    assert calibration is not None
    bare = tuple({**f, "input_ids": np.where(f["input_ids"] == mask, 5, f["input_ids"])} for f in calibration.report)
    sets = [JudgingSet("your data", calibration.report), JudgingSet("unmasked", bare)]
    judges = Judges(calibration.backend, sets)
    assert [row.name for row in judges.quality_of(calibration.backend).sets or ()] == ["your data"]
    assert judges.notes[0] == "not judged on unmasked (none of its positions counts)"


@pytest.mark.parametrize(("head", "kind"), [("", "bert"), ("classes", "bert"), ("", "gpt2")])
def test_no_other_model_is_masked(head: str, kind: str, tmp_path: Path) -> None:
    folder = tiny_bert_folder(tmp_path / "model", kind, head)
    mask = with_mask(folder)
    calibration = load_calibration(lowrank.open_model(folder), write_text(tmp_path / "text.txt"))
    assert calibration is not None and signature_of(calibration.backend).mask_token is None
    assert not any((feed["input_ids"] == mask).any() for feed in calibration.fit)
