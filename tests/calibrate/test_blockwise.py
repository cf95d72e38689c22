"""Moments taken block by block are those of the whole model, and what is made of them is as good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import write_text, write_tokenizer
from checkpoints import STREAMED, checkpoint, contents

import lowrank
from lowrank.artifacts.grams import StoredGrams
from lowrank.backends.memory import batches_at_once
from lowrank.errors import CalibrationError
from lowrank.machine import cores
from lowrank.pipeline import Execution, Settings


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 40)


def folder_of(kind: str, folder: Path, **changes: Any) -> Path:
    made = checkpoint(folder, kind, torch.float32, **changes)
    write_tokenizer(made)
    return made


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "BertModel"])
def test_the_moments_are_those_of_the_whole_model(kind: str, tmp_path: Path, text: Path) -> None:
    folder = folder_of(kind, tmp_path / "model")
    settings = Settings(calib=str(text))
    streamed = lowrank.analyze(folder, output=tmp_path / "run", settings=settings, execution=STREAMED)
    backend: Any = lowrank.open_model(folder, streamed=False)
    from lowrank.calibrate.collect import collect_grams
    from lowrank.calibrate.data import load_calibration
    from lowrank.progress import silent

    calibration = load_calibration(backend, text)
    assert calibration is not None
    whole = collect_grams(calibration, backend.weights, silent)
    assert isinstance(streamed.grams, StoredGrams)
    blocks = [r.weight.name for r in streamed.weights]
    assert set(streamed.grams) == set(blocks)
    for name in blocks:
        ours, theirs = streamed.grams[name], whole[name]
        for a, b in ((ours.fit, theirs.fit), (ours.heldout, theirs.heldout)):
            assert (a.side, a.tokens, a.nonfinite) == (b.side, b.tokens, b.nonfinite)
            assert a.energy == pytest.approx(b.energy, rel=1e-4)
            assert np.abs(a.moment - b.moment).max() <= 1e-4 * np.abs(b.moment).max(), name
    assert all(record.heldout is not None for record in streamed.weights)
    report = lowrank.compress(None, 0.5, output=tmp_path / "run")
    assert not any("no calibration data" in note for note in report.notes)
    assert report.targets.keep_ratio <= 0.5


@pytest.mark.slow
def test_threads_change_nothing(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, settings = folder_of("LlamaForCausalLM", tmp_path / "model"), Settings(calib=str(text))
    for jobs in (1, 3):
        monkeypatch.setattr("lowrank.calibrate.blockwise.batches_at_once", lambda *_, jobs=jobs: jobs)
        lowrank.analyze(folder, output=tmp_path / str(jobs), settings=settings, execution=STREAMED)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_few_bytes_run_one_batch_at_once() -> None:
    assert batches_at_once(100, 0) == 1 and batches_at_once(100, 1 << 50) == cores()


def test_data_makes_a_better_model(tmp_path: Path, text: Path) -> None:
    folder = folder_of("LlamaForCausalLM", tmp_path / "model")
    import transformers
    from builders import sentences

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [torch.tensor([tokenizer(line)["input_ids"]]) for line in sentences(20, seed=9)]
    dense = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def lost(run: Path) -> float:
        small: Any = lowrank.load(run)
        with torch.no_grad():
            pairs = [(dense.model(i).last_hidden_state, small.model(i).last_hidden_state) for i in ids]
        return float(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((a**2).sum() for a, _ in pairs))

    for name, calib in (("plain", "none"), ("data", str(text))):
        lowrank.compress(folder, 0.4, output=tmp_path / name, settings=Settings(calib=calib), execution=STREAMED)
    assert lost(tmp_path / "data") < 0.8 * lost(tmp_path / "plain")


def test_a_run_that_was_stopped_goes_on_at_its_block(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowrank.backends.checkpoint.block_runner import BlockRunner

    folder = folder_of("LlamaForCausalLM", tmp_path / "model", num_hidden_layers=4)
    settings = Settings(calib=str(text))
    lowrank.analyze(folder, output=tmp_path / "undisturbed", settings=settings, execution=STREAMED)
    running = BlockRunner.running
    done: list[int] = []

    def counted(self: BlockRunner, index: int, *args: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(index)
        return running(self, index, *args)

    with monkeypatch.context() as patch:
        patch.setattr(BlockRunner, "running", counted)
        with pytest.raises(KeyboardInterrupt):
            lowrank.analyze(folder, output=tmp_path / "run", settings=settings, execution=STREAMED)
    again: list[int] = []

    def noted(self: BlockRunner, index: int, *args: Any) -> Any:
        again.append(index)
        return running(self, index, *args)

    monkeypatch.setattr(BlockRunner, "running", noted)
    resumed = Execution(stream=True, resume=True)
    lowrank.analyze(folder, output=tmp_path / "run", settings=settings, execution=resumed)
    assert (done, again) == ([0, 1], [2, 3])
    assert contents(tmp_path / "run") == contents(tmp_path / "undisturbed")


def test_two_rows_of_blocks_are_refused(tmp_path: Path, text: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.T5Config(d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=2, vocab_size=64)
    transformers.T5Model(config).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    with pytest.raises(CalibrationError, match="not one row of blocks"):
        lowrank.analyze(
            tmp_path / "model", output=tmp_path / "run", settings=Settings(calib=str(text)), execution=STREAMED
        )


def test_files_of_moments_stay_in_their_folder(tmp_path: Path, text: Path) -> None:
    folder = folder_of("LlamaForCausalLM", tmp_path / "model")
    run = tmp_path / "run"
    lowrank.analyze(folder, output=run, settings=Settings(calib=str(text)), execution=STREAMED)
    content = json.loads((run / "analysis.json").read_text())
    name = next(iter(content["grams"]["files"]))
    content["grams"]["files"][name] = "../secret.safetensors"
    (run / "analysis.json").write_text(json.dumps(content))
    with pytest.raises(lowrank.LowRankError, match="outside of its folder"):
        lowrank.compress(None, 0.5, output=run)
