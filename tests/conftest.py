"""What every test gets: the same seeds, no network, and a command line to call."""

from __future__ import annotations

import os

# Before any Hugging Face package is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: one thread each is faster than fighting over them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import saved_state, tiny_bert_folder, write_text
from filelock import FileLock
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # What a shell starts in the background ignores interrupts, and so would every process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`slow_but("bert")`: slow with all parameters but these, so that the quick suite sees one of them."""
    for item in items:
        spared = item.get_closest_marker("slow_but")
        if spared is not None and not any(item.name.endswith(f"[{name}]") for name in spared.args):
            item.add_marker(pytest.mark.slow)


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of one run of the tests share."""
    place = tmp_path_factory.getbasetemp()
    return place.parent if "PYTEST_XDIST_WORKER" in os.environ else place


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run, whatever ran before."""
    import torch

    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def refined_shortly() -> Iterator[None]:
    """Blocks are refined for one step: tests of other things need no good models."""
    from lowrank.pipeline import refining

    steps, refining.STEPS = refining.STEPS, 1
    yield
    refining.STEPS = steps


@pytest.fixture(autouse=True, scope="session")
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A model is traced once for all tests and workers: see `traces.py`."""
    from traces import Traces

    from lowrank.backends.torch import export

    trace = export.export_graph
    folder = shared_folder(tmp_path_factory) / "traced"
    folder.mkdir(exist_ok=True)
    export.export_graph = Traces(trace, folder).export_graph
    yield
    export.export_graph = trace


@pytest.fixture
def exporter(traced_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the exporter itself: no graph is made from that of another model."""
    from lowrank.backends.torch import export

    traces = export.export_graph.__self__  # type: ignore[attr-defined]
    monkeypatch.setattr(export, "export_graph", replace(traces, refill=False).export_graph)


@dataclass(frozen=True)
class Outcome:
    """What a command gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Call the command line in this process."""

    def call(*arguments: object) -> Outcome:
        from lowrank.cli.app import main

        monkeypatch.setattr(sys, "argv", ["lowrank", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Outcome(code, captured.out, captured.err)

    return call


def made_by_one(place: Path, name: str, make: Callable[[Path], Any]) -> Path:
    """A folder that one worker makes for all. Its own path is in what is made, so it is made where it stays."""
    folder = place / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder)
                raise
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with a tokenizer, as a Hugging Face folder. Tests must not write to it."""
    return made_by_one(shared_folder(tmp_path_factory), "bert", tiny_bert_folder)


@pytest.fixture(scope="session")
def shared_bert_run(tmp_path_factory: pytest.TempPathFactory, bert_folder: Path) -> Path:
    """The run of that BERT at half its size, calibrated. Tests must not write to it."""

    def make(folder: Path) -> None:
        import lowrank

        settings = lowrank.Settings(calib=str(write_text(folder / "text.txt", 60)))
        lowrank.compress(str(bert_folder), 0.5, output=folder / "run", settings=settings, latency=False)

    return made_by_one(shared_folder(tmp_path_factory), "bert-run", make) / "run"


@pytest.fixture(scope="session")
def shared_state_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a state dict at half its size. Tests must not write to it."""

    def make(folder: Path) -> None:
        import lowrank

        lowrank.compress(saved_state(folder / "model.pt"), 0.5, output=folder / "run")

    return made_by_one(shared_folder(tmp_path_factory), "state-run", make) / "run"


@pytest.fixture
def forget_written_modules(tmp_path: Path) -> Iterator[None]:
    """Modules that a test has written and imported are forgotten with it: two of them may have one name."""
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
