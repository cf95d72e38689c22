"""A run that is killed at any moment goes on to exactly what it would have been, and does next to nothing twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_text
from checkpoints import NO_DATA, STREAMED, checkpoint, contents

import lowrank
from lowrank.artifacts import files
from lowrank.artifacts.journal import FACTS, PROGRESS_FOLDER, Journal, open_journal
from lowrank.artifacts.lock import locked
from lowrank.errors import ArtifactError, PlanMismatch, ResourceError
from lowrank.pipeline import Execution, Settings

KILLS = 50
PRELOADED = [
    "lowrank.pipeline",
    "lowrank.calibrate.blockwise",
    "lowrank.evaluate.measure",
    "lowrank.backends.checkpoint.open",
    "lowrank.backends.torch",
    "lowrank.backends.torch.export",
    "onnxruntime",
    "torch.onnx._internal.exporter._core",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
]
"""So that a process begins with its work, not with imports."""
RESUMED = Execution(stream=True, resume=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("llama"), num_hidden_layers=6)


def compress(model: str, run: str, settings: Settings, execution: Execution) -> None:
    lowrank.compress(model, 0.5, output=run, settings=settings, execution=execution, latency=False)


def compress_again(model: str, run: str, settings: Settings, execution: Execution) -> None:
    """The same, with a graph that an earlier process has traced: most of the time is then spent where pieces are kept,
    and so is most of the killing."""
    from traces import Traces

    from lowrank.backends.torch import export

    folder = Path(run).with_name("traced")
    folder.mkdir(exist_ok=True)
    export.export_graph = Traces(export.export_graph, folder, refill=False).export_graph
    compress(model, run, settings, execution)


def pieces(run: Path) -> dict[Path, int]:
    """The finished pieces of unfinished work, and when each was written."""
    found = (run / PROGRESS_FOLDER).rglob("*.safetensors") if (run / PROGRESS_FOLDER).is_dir() else ()
    return {path: path.stat().st_mtime_ns for path in found if not path.name.startswith(".")}


def killed_again_and_again(
    work: Callable[..., None], model: Path, run: Path, settings: Settings, execution: Execution, kills: int, seed: int
) -> tuple[int, int]:
    """Kill runs at random moments until one ends by itself, and again from nothing until there were enough kills.

    Returns:
        How many runs ended, and how many pieces were made twice.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    rng = random.Random(seed)
    expected: dict[str, bytes] | None = None
    longest, done, ended, twice = 4.0, 0, 0, 0
    while done < kills or expected is None:
        before = pieces(run)
        process = processes.Process(target=work, args=(str(model), str(run), settings, execution))
        start = time.monotonic()
        process.start()
        # Runs that end tell how long one takes: the first, which traces, and those after it.
        process.join(None if expected is None else rng.uniform(0, longest))
        if process.exitcode is None:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            done += 1
            twice += sum(after != before.get(path, after) for path, after in pieces(run).items())
            continue
        assert process.exitcode == 0
        longest = time.monotonic() - start if ended < 2 else longest
        found = contents(run)
        expected = expected or found
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
        assert not (run / PROGRESS_FOLDER).exists()
        ended += 1
        shutil.rmtree(run)
    return ended, twice


@pytest.mark.slow
def test_streamed_runs_survive_being_killed(llama: Path, tmp_path: Path) -> None:
    ended, twice = killed_again_and_again(compress_again, llama, tmp_path / "run", NO_DATA, RESUMED, KILLS, seed=1)
    assert ended > 2
    assert twice == 0


@pytest.mark.slow
def test_runs_in_memory_survive_being_killed(bert_folder: Path, tmp_path: Path) -> None:
    settings = Settings(calib=str(write_text(tmp_path / "text.txt", 64)))
    ended, twice = killed_again_and_again(
        compress_again, bert_folder, tmp_path / "run", settings, Execution(resume=True), 12, seed=2
    )
    assert ended > 1
    assert twice == 0


class Stopped(Exception):
    """Stands for a power cut."""


def stopped_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let so many pieces be written, and then end the run; the keys that were written."""
    written: list[str] = []
    write = files.write_tensors

    def counted(path: Path, tensors: Any, metadata: Any) -> None:
        if "key" in metadata:
            if len(written) == count:
                raise Stopped
            written.append(metadata["key"])
        write(path, tensors, metadata)

    monkeypatch.setattr("lowrank.artifacts.journal.write_tensors", counted)
    return written


def test_nothing_that_was_done_is_done_again(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(calib=str(write_text(tmp_path / "text.txt", 64)))
    lowrank.analyze(bert_folder, output=tmp_path / "undisturbed", settings=settings)
    keys: list[str] = []
    for count in (1, 3, 8, 13, 21, 1000):
        with monkeypatch.context() as patch:
            written = stopped_after(count, patch)
            try:
                lowrank.analyze(
                    bert_folder, output=tmp_path / "run", settings=settings, execution=Execution(resume=True)
                )
            except Stopped:
                keys += written
            else:
                keys += written
                break
    # Threads may each have had a piece in hand when the run ended, but none that was kept is made anew.
    assert len(set(keys)) == len(keys)
    assert {"grams", "curvatures"} <= set(keys)
    assert any(key.startswith("sensitivity") for key in keys)
    assert any(key.startswith("context") for key in keys)
    assert contents(tmp_path / "run") == contents(tmp_path / "undisturbed")


@pytest.mark.slow
def test_factors_and_refits_are_kept(bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(calib=str(write_text(tmp_path / "text.txt", 64)))
    lowrank.analyze(bert_folder, output=tmp_path / "whole", settings=settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    lowrank.compress(None, 0.5, output=tmp_path / "whole", latency=False)
    keys: list[str] = []
    for count in (4, 7, 1000):
        with monkeypatch.context() as patch:
            written = stopped_after(count, patch)
            with suppress(Stopped):
                lowrank.compress(None, 0.5, output=tmp_path / "run", latency=False, execution=Execution(resume=True))
            keys += written
            if len(written) < count:
                break
    assert len(set(keys)) == len(keys)
    assert any(key.startswith("refit") for key in keys)
    whole, run = contents(tmp_path / "whole"), contents(tmp_path / "run")
    assert [name for name in whole if run[name] != whole[name]] == []


def test_other_work_is_refused_with_both_named(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stopped_after(3, patch)
        with pytest.raises(Stopped):
            lowrank.analyze(llama, output=tmp_path / "run", settings=NO_DATA, execution=STREAMED)
    identity = json.loads((tmp_path / "run" / PROGRESS_FOLDER / "analyze" / "identity.json").read_text())["identity"]
    other = Settings(calib="none", exclude=("*q_proj*",))
    with pytest.raises(PlanMismatch, match=f"the settings was {identity['settings']} and is .*--resume"):
        lowrank.analyze(llama, output=tmp_path / "run", settings=other, execution=RESUMED)
    with monkeypatch.context() as patch:
        patch.setattr("lowrank.pipeline.analyzing.__version__", "9.9")
        with pytest.raises(PlanMismatch, match=f"version of lowrank was {lowrank.__version__} and is 9.9"):
            lowrank.analyze(llama, output=tmp_path / "run", settings=NO_DATA, execution=RESUMED)
    # Without --resume it begins anew.
    lowrank.analyze(llama, output=tmp_path / "run", settings=other, execution=STREAMED)
    assert not (tmp_path / "run" / PROGRESS_FOLDER).exists()


def test_a_changed_plan_is_refused(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    lowrank.analyze(llama, output=run, settings=NO_DATA, execution=STREAMED)

    def full(*_: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("lowrank.pipeline.streamed.copy_tensors", full)
        with pytest.raises(Stopped):
            lowrank.compress(None, 0.5, output=run)
    assert pieces(run)
    with pytest.raises(PlanMismatch, match="the plan was .* and is"):
        lowrank.compress(None, 0.4, output=run, execution=RESUMED)
    before = pieces(run)
    with monkeypatch.context() as patch:
        patch.setattr("lowrank.pipeline.streamed.write_factors", full)
        lowrank.compress(None, 0.5, output=run, execution=RESUMED)
    assert before and not pieces(run)


def test_a_damaged_piece_is_made_again(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, "stage", {"model": "a"}, resume=False)
    assert journal.kept("one", FACTS, lambda: [1.5, "x"]) == [1.5, "x"]
    assert journal.kept("one", FACTS, lambda: [2.5]) == [1.5, "x"]
    for path in journal.folder.glob("*.safetensors") if journal.folder else ():
        path.write_bytes(path.read_bytes()[:-3])
    assert journal.kept("one", FACTS, lambda: [2.5]) == [2.5]
    assert Journal().kept("one", FACTS, lambda: 3) == 3


def test_a_second_run_in_a_folder_is_told_so(llama: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=(str(tmp_path / "run"), str(ready)))
    holder.start()
    try:
        while not ready.exists():
            time.sleep(0.05)
        with pytest.raises(ArtifactError, match=f"in use by another lowrank .process {holder.pid} on .*choose another"):
            lowrank.analyze(llama, output=tmp_path / "run", settings=NO_DATA, execution=STREAMED)
    finally:
        holder.kill()
        holder.join()
    # What a killed process held is free.
    lowrank.analyze(llama, output=tmp_path / "run", settings=NO_DATA, execution=STREAMED)


def hold(run: str, ready: str) -> None:
    with locked(Path(run)):
        Path(ready).touch()
        time.sleep(60)


def test_a_full_disk_leaves_the_earlier_result(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    compress(str(llama), str(run), NO_DATA, STREAMED)
    before = contents(run)
    from lowrank.backends.checkpoint import write

    made: list[Path] = []
    atomic = write.atomic

    @contextmanager
    def full(path: Path) -> Iterator[Path]:
        made.append(path)
        with atomic(path) as temporary:
            yield Path("/dev/full") if len(made) > 4 else temporary

    with monkeypatch.context() as patch:
        patch.setattr(write, "atomic", full)
        with pytest.raises(ArtifactError, match="No space left on device; nothing that was there has changed"):
            lowrank.compress(None, 0.3, output=run)
    assert {name: content for name, content in contents(run).items() if not name.startswith(".")} == before
    lowrank.compress(None, 0.3, output=run, execution=RESUMED)
    assert contents(run) != before


def test_too_little_disk_is_known_before(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lowrank.analyze(llama, output=tmp_path / "run", settings=NO_DATA, execution=STREAMED)
    monkeypatch.setattr("lowrank.pipeline.estimate.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
    with pytest.raises(ResourceError, match="its disk has 0.0 GB left; make room"):
        lowrank.compress(None, 0.5, output=tmp_path / "run")
    with pytest.raises(ResourceError, match="make room, or choose another folder"):
        lowrank.analyze(llama, output=tmp_path / "other", settings=NO_DATA, execution=STREAMED)
    assert not pieces(tmp_path / "other")


def test_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    from lowrank.artifacts.replacements import REPLACEMENTS
    from lowrank.core.structures.base import Replacement
    from lowrank.core.truncation.factors import Factors
    from lowrank.core.truncation.narrow import Narrow
    from lowrank.core.truncation.pivoted import Pivoted

    rng = np.random.default_rng(0)
    shared = rng.standard_normal((3, 5))
    made = {
        "a": Replacement("shared", Factors(rng.standard_normal((4, 3)), shared), bias=rng.standard_normal(4)),
        "b": Replacement("shared", Factors(rng.standard_normal((6, 3)), shared), rows=np.arange(6)),
        "c": Replacement("pivoted", Pivoted(rng.standard_normal((4, 2)), shared[:2], np.arange(6), heads=2, last=True)),
        "d": Replacement("neurons", Narrow(shared, None, np.array([1, 4]), True, 7), bias=np.zeros(0)),
    }
    journal = Journal(tmp_path)
    journal.kept("x", REPLACEMENTS, lambda: made)
    found = journal.kept("x", REPLACEMENTS, dict)
    assert found["a"].factors.right is found["b"].factors.right
    for name, before in made.items():
        after = found[name]
        assert type(after.factors) is type(before.factors)
        for key in before.factors.__dataclass_fields__:
            a, b = getattr(before.factors, key), getattr(after.factors, key)
            assert a is b or np.array_equal(a, b), (name, key)
        for key in ("bias", "rows", "cols"):
            a, b = getattr(before, key), getattr(after, key)
            assert a is b or np.array_equal(a, b), (name, key)
