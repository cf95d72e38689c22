"""No weight of a streamed model is decomposed twice, and what that takes is said, refused and left out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import NO_DATA, STREAMED, checkpoint, contents
from safetensors.torch import load_file, save_file

import lowrank
from lowrank.artifacts.directions import DIRECTIONS_FOLDER, directions_bytes
from lowrank.core.linalg import eigen
from lowrank.core.truncation.directions import plain_truncation
from lowrank.errors import ArtifactError, DecompositionError, ResourceError
from lowrank.pipeline import Execution, analyzing, foresee
from lowrank.pipeline import estimate as estimating

FORGETFUL = Execution(stream=True, keep_directions=False)


TYPES = {"32 bits": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


SLOW = pytest.mark.slow


@pytest.fixture(scope="module", params=[pytest.param(n, marks=SLOW if n != "bfloat16" else ()) for n in TYPES])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model"), dtype=TYPES[request.param])


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("coarse"))


def compressed(run: Path, keep: float, execution: Execution) -> Any:
    return lowrank.compress(None, keep, output=run, execution=execution)


def no_solver(*_: object, **__: object) -> None:
    raise DecompositionError("a weight is decomposed again")


def test_compression_decomposes_nothing_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lowrank.analyze(folder, output=tmp_path / "kept", settings=NO_DATA, execution=STREAMED)
    lowrank.analyze(folder, output=tmp_path / "not", settings=NO_DATA, execution=FORGETFUL)
    assert not (tmp_path / "not" / DIRECTIONS_FOLDER).exists()
    again = compressed(tmp_path / "not", 0.4, FORGETFUL)
    with monkeypatch.context() as patched:
        patched.setattr(eigen, "solved", no_solver)
        once = compressed(tmp_path / "kept", 0.4, STREAMED)
        with pytest.raises(DecompositionError):
            lowrank.compress(None, 0.3, output=tmp_path / "not", execution=FORGETFUL)
    plans = [json.loads((tmp_path / run / "plan.json").read_text())["groups"] for run in ("kept", "not")]
    ranks = [[(group["name"], group["structure"], group["rank"]) for group in plan] for plan in plans]
    assert ranks[0] == ranks[1]
    # The directions are stored more finely than the weights.
    cast: float = once.error.cast_relative
    assert cast == pytest.approx(again.error.cast_relative, rel=0.2)
    models: list[Any] = [lowrank.load(tmp_path / run) for run in ("kept", "not")]
    a, b = models
    for (name, one), (_, other) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert one.shape == other.shape, name
    for weight in once.error.cast_per_weight:
        module = weight.removesuffix(".weight")
        one, other = (each.get_submodule(module).float().weight.detach() for each in (a, b))
        assert float((one - other).norm() / other.norm()) < 3 * cast


def test_a_rank_beyond_those_that_are_kept_is_decomposed(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    analysis = lowrank.analyze(folder, output=run, settings=NO_DATA, execution=STREAMED)
    report = compressed(run, 0.8, STREAMED)
    groups = json.loads((run / "plan.json").read_text())["groups"]
    beyond = [
        group["name"]
        for group in groups
        if analysis[group["name"]].weight.full_rank > group["rank"] > analysis[group["name"]].weight.full_rank // 2
    ]
    assert beyond
    backend = lowrank.open_model(folder, streamed=True)
    model: Any = lowrank.load(run)
    for name in beyond:
        dense = backend.read(name)
        small = model.get_submodule(name.removesuffix(".weight")).double().weight.detach().numpy()
        lost = float(np.linalg.norm(dense - small) / np.linalg.norm(dense))
        told = report.error.per_weight[name] ** 2 + report.error.cast_per_weight[name] ** 2
        assert lost == pytest.approx(told**0.5, rel=0.1), name


def test_they_stay_for_further_budgets_and_may_be_removed(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lowrank.compress(folder, 0.5, output=run, settings=NO_DATA, execution=STREAMED)
    assert list((run / DIRECTIONS_FOLDER).iterdir())
    lowrank.compress(None, 0.3, output=run, execution=STREAMED)
    assert list((run / DIRECTIONS_FOLDER).iterdir())
    shutil.rmtree(run / DIRECTIONS_FOLDER)
    lowrank.compress(None, 0.3, output=run, execution=STREAMED)
    lowrank.compress(folder, 0.3, output=tmp_path / "other", settings=NO_DATA, execution=FORGETFUL)
    assert contents(run / "model") == contents(tmp_path / "other" / "model")


@pytest.mark.parametrize("whole", [False, True], ids=["analyze", "compress"])
def test_another_analysis_takes_them_away(coarse: Path, tmp_path: Path, whole: bool) -> None:
    run, others = tmp_path / "run", lowrank.Settings(calib="none", exclude=["*0*"])
    lowrank.compress(coarse, 0.5, output=run, settings=NO_DATA, execution=STREAMED)
    assert (run / DIRECTIONS_FOLDER).exists()
    if whole:
        lowrank.compress(coarse, 0.5, output=run, settings=others, execution=FORGETFUL)
    else:
        lowrank.analyze(coarse, output=run, settings=others, execution=FORGETFUL)
    assert not (run / DIRECTIONS_FOLDER).exists()


@pytest.mark.slow
def test_those_of_another_model_are_not_taken(coarse: Path, tmp_path: Path) -> None:
    """As a copy that was not finished leaves them: files are named after weights, which both models have."""
    other = checkpoint(tmp_path / "other", hidden_act="gelu")
    for shard in other.glob("*.safetensors"):
        tensors = {name: tensor * 2 for name, tensor in load_file(shard).items()}
        save_file(tensors, shard, {"format": "pt"})
    for model, run in ((coarse, "one"), (other, "two")):
        lowrank.analyze(model, output=tmp_path / run, settings=NO_DATA, execution=STREAMED)
    compressed(tmp_path / "two", 0.5, STREAMED)
    before = contents(tmp_path / "two" / "model")
    shutil.rmtree(tmp_path / "two" / DIRECTIONS_FOLDER)
    shutil.copytree(tmp_path / "one" / DIRECTIONS_FOLDER, tmp_path / "two" / DIRECTIONS_FOLDER)
    compressed(tmp_path / "two", 0.5, STREAMED)
    again = contents(tmp_path / "two" / "model")
    shutil.rmtree(tmp_path / "two" / DIRECTIONS_FOLDER)
    compressed(tmp_path / "two", 0.5, STREAMED)
    assert again == contents(tmp_path / "two" / "model")
    assert again.keys() == before.keys()


def test_a_run_that_was_moved_has_them(coarse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lowrank.analyze(coarse, output=tmp_path / "here", settings=NO_DATA, execution=STREAMED)
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.setattr(eigen, "solved", no_solver)
    compressed(tmp_path / "there", 0.4, STREAMED)


@pytest.mark.parametrize(
    "how", [(STREAMED, FORGETFUL), pytest.param((FORGETFUL, STREAMED), marks=SLOW), (STREAMED, STREAMED)]
)
def test_an_analysis_that_was_stopped_goes_on(
    coarse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: tuple[Execution, Execution]
) -> None:
    run, count, record = tmp_path / "run", iter(range(100)), analyzing.analyze_weight

    def stopped(*given: Any) -> Any:
        if next(count) > 4:
            raise KeyboardInterrupt
        return record(*given)

    with monkeypatch.context() as patched:
        patched.setattr(analyzing, "analyze_weight", stopped)
        with pytest.raises(KeyboardInterrupt):
            lowrank.analyze(coarse, output=run, settings=NO_DATA, execution=how[0])
    lowrank.analyze(coarse, output=run, settings=NO_DATA, execution=replace(how[1], resume=True))
    report = compressed(run, 0.4, STREAMED)
    lowrank.compress(coarse, 0.4, output=tmp_path / "whole", settings=NO_DATA, execution=STREAMED)
    ranks = [json.loads((each / "plan.json").read_text())["groups"] for each in (run, tmp_path / "whole")]
    assert [group["rank"] for group in ranks[0]] == [group["rank"] for group in ranks[1]]
    assert report.error.cast_relative < 0.01


def test_with_data_there_are_none(coarse: Path, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50, (8, 12))
    np.savez(tmp_path / "ids.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    settings = lowrank.Settings(calib=str(tmp_path / "ids.npz"))
    lowrank.analyze(coarse, output=tmp_path / "run", settings=settings, execution=STREAMED)
    assert not (tmp_path / "run" / DIRECTIONS_FOLDER).exists()
    assert foresee(str(coarse), 0.5, tmp_path / "new", settings, execution=STREAMED).directions == 0


def test_a_damaged_file_is_named(coarse: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lowrank.analyze(coarse, output=run, settings=NO_DATA, execution=STREAMED)
    for path in (run / DIRECTIONS_FOLDER).iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="remove the folder"):
        compressed(run, 0.5, STREAMED)


def test_what_they_take_is_foreseen(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(estimating, "_seconds_per_unit", lambda: 1.0)
    analysis = lowrank.analyze(folder, output=run, settings=NO_DATA, execution=STREAMED)
    there = sum(path.stat().st_size for path in (run / DIRECTIONS_FOLDER).iterdir())
    expected = sum(directions_bytes(record.weight) for record in analysis.weights)
    assert expected < there < expected + 300 * len(analysis.weights)
    kept, forgotten = (foresee(str(folder), 0.3, tmp_path / "new", NO_DATA, execution=e) for e in (STREAMED, FORGETFUL))
    assert kept.disk - forgotten.disk == kept.directions == expected
    # What lies there takes no more, and a large budget takes more of it than there is.
    known, large = (foresee(None, keep, run, execution=STREAMED) for keep in (0.3, 0.95))
    assert known.disk < kept.disk and known.directions == 0
    assert known.compress_seconds < large.compress_seconds == forgotten.compress_seconds
    usage = shutil.disk_usage(tmp_path)._replace(free=kept.disk - expected // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="--no-directions"):
        lowrank.compress(str(folder), 0.3, output=tmp_path / "full", settings=NO_DATA, execution=STREAMED)
    compressed(run, 0.3, STREAMED)


def test_known_directions_give_the_truncation() -> None:
    rng = np.random.default_rng(0)
    for shape in ((8, 12), (12, 8)):
        weight = rng.standard_normal(shape)
        _, vectors = eigen.singular_vectors(weight)
        for rank in (1, 4, 8):
            known = plain_truncation(weight, rank, leading=vectors[:, :4])
            assert np.allclose(known.product(), plain_truncation(weight, rank).product())
