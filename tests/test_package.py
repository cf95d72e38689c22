"""The package as a whole: public names, import direction, import cost, artifacts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lowrank
from lowrank.artifacts import staged, write_json
from lowrank.artifacts.files import read_json, read_tensors, write_tensors
from lowrank.errors import ArtifactError
from lowrank.parallel import windowed_map

ROOT = Path(__file__).parent.parent


def test_every_public_name_resolves_and_has_a_docstring() -> None:
    for name in lowrank.__all__:
        value = getattr(lowrank, name)
        assert name == "__version__" or value.__doc__, name
    assert set(dir(lowrank)) == set(lowrank.__all__)
    with pytest.raises(AttributeError):
        lowrank.nothing  # noqa: B018


@pytest.mark.parametrize("lint", ["check_imports", "check_structures"])
def test_the_house_is_in_order(lint: str) -> None:
    done = subprocess.run([sys.executable, ROOT / f"tools/{lint}.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["compress", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; from lowrank.cli.app import main; sys.argv = ['lowrank', *{arguments!r}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'transformers', 'scipy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_core_needs_no_torch() -> None:
    code = (
        "import sys, lowrank.core.selection.knapsack, lowrank.core.verdict; "
        "assert not {'torch', 'onnx', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_is_called_utils_and_none_is_long() -> None:
    for path in (ROOT / "lowrank").rglob("*.py"):
        assert path.stem not in {"utils", "helpers", "manager", "common"}
        assert len(path.read_text().splitlines()) <= 400, path


def test_staging_is_all_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "stale").write_text("old")
    with pytest.raises(RuntimeError), staged(tmp_path, owned=("stale",)) as stage:
        (stage / "a").write_text("new")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old"
    with staged(tmp_path, owned=("stale",)) as stage:
        (stage / "a").write_text("new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "new"}


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".lowrank-staging-{gone.pid}-abcd").mkdir()
    with staged(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_json_and_tensors_round_trip_and_refuse_others(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", "plan", {"x": [1, 2.5, "é"]})
    assert read_json(tmp_path / "a.json", "plan")["x"] == [1, 2.5, "é"]
    with pytest.raises(ArtifactError, match="not a lowrank report"):
        read_json(tmp_path / "a.json", "report")
    write_tensors(tmp_path / "a.safetensors", {"x": np.arange(6.0).reshape(2, 3).T}, {})
    assert np.array_equal(read_tensors(tmp_path / "a.safetensors")[0]["x"], np.arange(6.0).reshape(2, 3).T)
    for content in (b"", b"[]", b"\xff\xfe", b'{"schema": 3}', b'{"schema": "lowrank.plan"}'):
        (tmp_path / "b.json").write_bytes(content)
        with pytest.raises(ArtifactError):
            read_json(tmp_path / "b.json", "plan")
    with pytest.raises(ValueError):
        write_json(tmp_path / "c.json", "plan", {"x": float("nan")})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors", "b.json"]


def test_windowed_map_keeps_order_and_its_window() -> None:
    started = []

    def items():
        for i in range(20):
            started.append(i)
            yield i

    results = windowed_map(lambda i: i * i, items(), window=3)
    assert next(results) == 0
    assert len(started) <= 4
    assert list(results) == [i * i for i in range(1, 20)]


def test_constraints_pin_every_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    names = {d.split(">")[0].split("=")[0].split("[")[0] for d in wanted}
    assert names <= pins
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text()


def test_schema_is_on_every_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", "plan", {})
    assert json.loads((tmp_path / "a.json").read_text()) == {"schema": "lowrank.plan/1.0"}


def test_an_interrupted_move_is_undone_by_the_next_one(tmp_path: Path) -> None:
    """Killed between moving the old entries out and the new ones in: the old ones come back."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    attic = tmp_path / f".lowrank-staging-{gone.pid}-abcd" / ".replaced"
    attic.mkdir(parents=True)
    (attic / "model").mkdir()
    (attic / "model" / "precious").write_text("old")
    with staged(tmp_path) as stage:
        (stage / "other").write_text("new")
    assert (tmp_path / "model" / "precious").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "other"]


@pytest.mark.parametrize("failing", range(1, 6))
def test_any_interruption_of_the_moves_restores_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """After each rename in turn, as a signal may come: everything is as it was."""
    import lowrank.artifacts.files as files

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("old")
    (tmp_path / "plan").write_text("old")
    real, calls = os.replace, 0

    def interrupted(source: object, target: object) -> None:
        nonlocal calls
        calls += 1
        real(source, target)  # type: ignore[arg-type]
        if calls == failing:
            raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    try:
        with staged(tmp_path) as stage:
            (stage / "model").mkdir()
            (stage / "model" / "a").write_text("new")
            (stage / "plan").write_text("new")
    except KeyboardInterrupt:
        assert (tmp_path / "model" / "a").read_text() == "old"
        assert (tmp_path / "plan").read_text() == "old"
    else:
        assert failing > 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "plan"]


def test_files_of_two_analyses_are_not_taken_together(tmp_path: Path) -> None:
    import torch

    for name in ("a", "b"):
        torch.save({"w": torch.randn(8, 8)}, tmp_path / f"{name}.pt")
        lowrank.analyze(tmp_path / f"{name}.pt", output=tmp_path / name)
    (tmp_path / "b/analysis.safetensors").replace(tmp_path / "a/analysis.safetensors")
    with pytest.raises(ArtifactError, match="beside it of"):
        lowrank.artifacts.load_analysis(tmp_path / "a")


def test_dependencies_have_bounds_that_were_tested() -> None:
    """Each has an upper bound, and the versions that the tests run with are within it."""
    import tomllib
    from importlib.metadata import version

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    for requirement in map(Requirement, named):
        bounds = {specifier.operator for specifier in requirement.specifier}
        assert bounds & {"<", "=="}, f"{requirement} has no upper bound"
        tested = pinned.get(requirement.name) or pinned.get(requirement.name.replace("-", "_"))
        assert tested is not None, f"constraints.txt does not say which {requirement.name} was tested"
        assert requirement.specifier.contains(tested), f"{requirement} does not allow {tested}"
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(version(requirement.name)), requirement.name
