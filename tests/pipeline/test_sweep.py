"""`lowrank sweep`: what its table says is so, of the very files that are written."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import read, tiny_bert_folder, write_text
from conftest import Outcome

import lowrank
from lowrank.backends.onnx.save import file_size
from lowrank.core.selection.pareto import on_front
from lowrank.errors import LowRankError, PatternError
from lowrank.pipeline import Training, sweep
from lowrank.pipeline.search.candidates import CandidateBuilder
from lowrank.report.advice import advice
from lowrank.results.sweep import Point, Sweep

Cli = Callable[..., Outcome]


@dataclass(frozen=True)
class Swept:
    """A finished sweep. Tests must not write to it."""

    model: Path
    run: Path
    found: Sweep
    options: dict[str, Any]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, bert_folder: Path) -> Swept:
    folder = tmp_path_factory.mktemp("swept")
    settings = lowrank.Settings(calib=str(write_text(folder / "text.txt", 40)))
    options: dict[str, Any] = {"keeps": [0.5], "distil": 0, "settings": settings}
    found = sweep(str(bert_folder), output=folder / "run", write=["all"], **options)
    return Swept(bert_folder, folder / "run", found, options)


def test_everything_is_there_and_the_dense_model_loses_nothing(swept: Swept) -> None:
    points = {point.name: point for point in swept.found.points}
    types = ("", "-int8", "-int4")
    wanted = {f"{name}{dtype}" for name in ("dense", "lowrank-0.5") for dtype in types}
    assert set(points) == wanted | {"pruned-0.5"} and not swept.found.left_out
    dense = points["dense"]
    assert (dense.drop, dense.low, dense.high) == (0.0, 0.0, 0.0) and abs(dense.quality - 1) < 1e-6
    assert points["lowrank-0.5"].params < dense.params == points["pruned-0.5"].params
    assert points["pruned-0.5"].gzip_bytes < dense.gzip_bytes
    kept = Sweep.from_json(read(swept.run / "sweep.json"))
    assert kept.points == swept.found.points and kept.advice == swept.found.advice == advice(kept.points)
    chosen = on_front([point.result for point in kept.points])
    assert [p.on_front for p in kept.points] == chosen
    page = (swept.run / "report.html").read_text(encoding="utf-8")
    assert "pruned-0.5" in page and "lowrank-0.5-int8" in page


def test_sizes_are_those_of_the_files(swept: Swept) -> None:
    for point in swept.found.points:
        assert file_size(swept.run / "points" / point.name / "model.onnx") == point.bytes, point.name
        assert {p.name for p in (swept.run / "points" / point.name).iterdir()} == {"model", "model.onnx"}
    assert not (swept.run / ".lowrank-progress").exists()


def test_a_written_point_has_the_quality_of_the_table(swept: Swept) -> None:
    """Measured by other means: each set by itself, opened anew."""
    from lowrank.backends.base import signature_of
    from lowrank.calibrate.data import load_calibration
    from lowrank.calibrate.sets import judging_sets
    from lowrank.evaluate.fidelity import Judge
    from lowrank.evaluate.graph import FileModel
    from lowrank.evaluate.likeness import worst_of

    calibration = load_calibration(lowrank.open_model(str(swept.model)), Path(swept.options["settings"].calib))
    assert calibration is not None
    sets = [each for each in judging_sets(calibration.backend, calibration) if each.feeds]
    assert [each.name for each in sets] == ["your data", "shorter", "joined"]
    below = 0
    for point in swept.found.points:
        file = FileModel(swept.run / "points" / point.name / "model.onnx", signature_of(calibration.backend))
        own, *others = (worst_of(Judge(calibration.backend, each.feeds).against(file)).fidelity for each in sets)
        assert min(own, *others) == pytest.approx(point.quality, abs=1e-5), point.name
        below += min(others) < own - 1e-5
    assert below


def test_pruned_weights_are_zeros_in_both_files(swept: Swept) -> None:
    (point,) = [p for p in swept.found.points if p.method == "pruned"]
    place = swept.run / "points" / point.name
    names = [record.weight.name for record in lowrank.artifacts.load_analysis(swept.run).weights]
    module = lowrank.load(place / "model")
    assert sum(int((module.get_parameter(name) == 0).sum()) for name in names) == point.zeros
    graph = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(place / "model.onnx").graph.initializer}
    assert sum(int((graph[name] == 0).sum()) for name in names) == point.zeros


def test_models_load_with_the_numbers_of_the_table(swept: Swept) -> None:
    for point in swept.found.points:
        module = lowrank.load(swept.run / "points" / point.name / "model")
        assert sum(p.numel() for p in module.parameters()) == point.params


def test_the_picture_has_every_point_in_both_panels(swept: Swept) -> None:
    root = ElementTree.fromstring((swept.run / "sweep.svg").read_text(encoding="utf-8"))
    told = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    for point in swept.found.points:
        assert sum(text.startswith(f"{point.name}: ") for text in told) == 2


def test_only_what_is_asked_for_is_made_again(swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    run = shutil.copytree(swept.run, tmp_path / "run")
    shutil.rmtree(run / "points")
    made, real = list[str](), CandidateBuilder._made

    def watched(self: CandidateBuilder, kind: Any) -> Any:
        made.append(kind.name)
        return real(self, kind)

    monkeypatch.setattr(CandidateBuilder, "_made", watched)
    assert sweep(str(swept.model), output=run, **swept.options).points == swept.found.points and not made
    again = sweep(str(swept.model), output=run, write=["lowrank-0.5-int8"], **swept.options)
    assert made == ["dense", "lowrank-0.5"] and again.points == swept.found.points
    assert [path.name for path in (run / "points").iterdir()] == ["lowrank-0.5-int8"]


def test_an_interrupted_sweep_goes_on(swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    import shutil

    run = tmp_path / "run"
    run.mkdir()
    for name in ("analysis.json", "analysis.safetensors"):
        shutil.copy(swept.run / name, run / name)
    made, real = list[str](), CandidateBuilder._made

    def watched(self: CandidateBuilder, kind: Any) -> Any:
        made.append(kind.name)
        if kind.method == "lowrank" and len(made) < 4:
            raise KeyboardInterrupt
        return real(self, kind)

    monkeypatch.setattr(CandidateBuilder, "_made", watched)
    text = swept.options["settings"].calib
    asked = ("sweep", swept.model, "-o", run, "--calib", text, "--keeps", "0.5", "--distil", 0)
    broken = cli(*asked)
    assert broken.code == 130 and "--resume" in broken.err and made == ["dense", "pruned-0.5", "lowrank-0.5"]
    assert not (run / "sweep.json").exists()
    done = cli(*asked, "--resume", "--json")
    assert done.code == 0, done.err
    assert made[3:] == ["lowrank-0.5"]
    before = {point.name: point for point in swept.found.points}
    for point in json.loads(done.out)["points"]:
        known = before[point["name"]]
        assert (point["bytes"], point["quality"]) == (known.bytes, pytest.approx(known.quality, abs=1e-6))


def test_wrong_names_are_refused_before_any_work(swept: Swept, tmp_path: Path, cli: Cli) -> None:
    with pytest.raises(PatternError, match=r"lowrank-0\.5-int8"):
        sweep(str(swept.model), output=tmp_path / "run", keeps=[0.5], write=["lowrank-0.5-in8"])
    with pytest.raises(LowRankError, match="no keep ratio"):
        sweep(str(swept.model), output=tmp_path / "run", keeps=[1.5])
    assert cli("sweep", swept.model, "-o", tmp_path / "run", "--task", "stts:x.tsv").code == 1
    assert not (tmp_path / "run" / "analysis.json").exists()


def test_what_it_means_is_said_in_words() -> None:
    def point(name: str, size: float, ms: float, drop: float) -> Any:
        method, _, rest = name.partition("-")
        dtype = next((d for d in ("int8", "int4") if d in rest), "float32")
        sizes = {"params": 1, "zeros": None, "bytes": int(size * 1e6), "gzip_bytes": int(size * 9e5), "ms": ms}
        quality = {"quality": 1 - drop, "drop": drop, "low": None, "high": None}
        return Point(name=name, method=method, dtype=dtype, keep=0.5, minutes=None, **sizes, **quality)

    dense, plain = point("dense", 40, 10, 0.0), point("dense-int8", 10, 5, 0.004)
    told = advice([dense, plain, point("lowrank-0.5-int8", 11, 5.5, 0.008)])
    assert "plain int8 is the better choice" in told[0] and "Plain int8 beats 1 of 1 low-rank points" in told[2]
    told = advice([dense, plain, point("lowrank-0.5-int8", 6, 3, 0.008)])
    assert "Low rank is the better choice there" in told[0]
    told = advice([dense, plain, point("lowrank-0.5-int8", 6, 7, 0.008)])
    assert "better in size alone; for the other, dense-int8 is" in told[0]
    assert "No low-rank point is within it" in advice([dense, plain, point("lowrank-0.2", 6, 3, 0.5)])[0]
    assert "nothing is smaller or faster" in advice([dense])[0].lower()
    assert "36.0 MB at 0.5" in advice([dense, point("pruned-0.5", 40, 10, 0.1)])[-1]


@pytest.mark.slow
def test_trained_points_stand_beside_those_that_they_were_made_from(swept: Swept, tmp_path: Path) -> None:
    options = {**swept.options, "distil": Training(steps=20), "heal": Training(steps=20)}
    found = sweep(str(swept.model), output=tmp_path / "run", write=["healed-0.5", "student-int8"], **options)
    before, points = ({p.name: p for p in each.points} for each in (swept.found, found))
    # Healing is kept if the held-out loss is lower, which the worst of all sets need not follow in twenty steps.
    assert points["healed-0.5"].note is None and points["healed-0.5"].drop != points["lowrank-0.5"].drop
    assert points["lowrank-0.5"].drop == before["lowrank-0.5"].drop
    assert {path.name for path in (tmp_path / "run" / "points").iterdir()} == {"healed-0.5", "student-int8"}
    lowrank.load(tmp_path / "run" / "points" / "healed-0.5" / "model")
    student = lowrank.load(tmp_path / "run" / "points" / "student-int8" / "model")
    assert len(student.encoder.layer) == 1 and points["student"].params < points["dense"].params


@pytest.mark.slow
def test_a_language_model_and_a_graph(tmp_path: Path) -> None:
    model = tiny_bert_folder(tmp_path / "gpt2", "gpt2")
    settings = lowrank.Settings(calib=str(write_text(tmp_path / "text.txt", 40)))
    found = sweep(str(model), output=tmp_path / "run", keeps=[0.5], distil=Training(steps=4), settings=settings)
    assert found.task["metric"] == "agreement" and not found.left_out
    graph = lowrank.export(str(model), tmp_path / "dense")
    of_graph = sweep(str(graph), output=tmp_path / "again", keeps=[0.5], settings=lowrank.Settings(calib="none"))
    left = {each["name"]: each["reason"] for each in of_graph.left_out}
    assert set(left) == {"student", "student-int8", "student-int4"} and "no torch module" in left["student"]
    assert {p.name for p in of_graph.points} >= {"pruned-0.5", "lowrank-0.5-int8"}
    assert np.isfinite([p.quality for p in of_graph.points]).all()
