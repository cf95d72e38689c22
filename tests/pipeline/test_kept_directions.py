"""No weight of a streamed model is decomposed twice, and what that takes is said, refused and left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import NO_DATA, STREAMED, checkpoint, contents

import lowrank
from lowrank.artifacts.directions import DIRECTIONS_FOLDER, directions_bytes
from lowrank.core.linalg import eigen
from lowrank.core.truncation.directions import plain_truncation
from lowrank.errors import ArtifactError, DecompositionError, ResourceError
from lowrank.pipeline import Execution, foresee

FORGETFUL = Execution(stream=True, keep_directions=False)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["32 bits", "16 bits"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model"), dtype=request.param)


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
    # The directions are stored about as finely as the weights.
    coarse: float = once.error.cast_relative
    assert coarse == pytest.approx(again.error.cast_relative, rel=0.2)
    models: list[Any] = [lowrank.load(tmp_path / run) for run in ("kept", "not")]
    a, b = models
    for (name, one), (_, other) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert one.shape == other.shape, name
    for weight in once.error.cast_per_weight:
        module = weight.removesuffix(".weight")
        one, other = (each.get_submodule(module).float().weight.detach() for each in (a, b))
        assert float((one - other).norm() / other.norm()) < 3 * coarse


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


def test_another_analysis_takes_them_away(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lowrank.analyze(folder, output=run, settings=NO_DATA, execution=STREAMED)
    lowrank.analyze(folder, output=run, settings=lowrank.Settings(calib="none", exclude=["*0*"]), execution=FORGETFUL)
    assert not (run / DIRECTIONS_FOLDER).exists()


def test_a_damaged_file_is_named(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lowrank.analyze(folder, output=run, settings=NO_DATA, execution=STREAMED)
    for path in (run / DIRECTIONS_FOLDER).iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="remove the folder"):
        lowrank.compress(None, 0.5, output=run, execution=STREAMED)


def test_what_they_take_is_foreseen(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = lowrank.analyze(folder, output=tmp_path / "run", settings=NO_DATA, execution=STREAMED)
    there = sum(path.stat().st_size for path in (tmp_path / "run" / DIRECTIONS_FOLDER).iterdir())
    expected = sum(directions_bytes(record.weight) for record in analysis.weights)
    assert expected < there < expected + 200 * len(analysis.weights)
    with_them, without = (
        foresee(str(folder), 0.5, tmp_path / "new", NO_DATA, execution=how) for how in (STREAMED, FORGETFUL)
    )
    assert with_them.disk - without.disk == expected
    assert with_them.compress_seconds < without.compress_seconds
    usage = shutil.disk_usage(tmp_path)._replace(free=with_them.disk - expected // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="--no-directions"):
        lowrank.compress(str(folder), 0.5, output=tmp_path / "full", settings=NO_DATA, execution=STREAMED)


def test_known_directions_give_the_truncation() -> None:
    rng = np.random.default_rng(0)
    for shape in ((8, 12), (12, 8)):
        weight = rng.standard_normal(shape)
        _, vectors = eigen.singular_vectors(weight)
        for rank in (1, 4, 8):
            known = plain_truncation(weight, rank, leading=vectors[:, :4])
            assert np.allclose(known.product(), plain_truncation(weight, rank).product())
