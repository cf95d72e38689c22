"""What every test gets: the same seeds, no network, and a command line to call."""

from __future__ import annotations

import os

# Before any Hugging Face package is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: one thread each is faster than fighting over them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_bert_folder
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


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run, whatever ran before."""
    import torch

    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A model of transformers is traced once for all tests and workers: tests make the same tiny ones again and again,
    and a trace takes seconds. What is found again has the same config, layers, numbers and inputs."""
    from lowrank.artifacts import hash_json
    from lowrank.backends.onnx.opset import OPSET
    from lowrank.backends.onnx.save import load_whole, save_model
    from lowrank.backends.torch import export
    from lowrank.backends.torch.tensors import hash_state

    place = tmp_path_factory.getbasetemp()
    folder = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "traced"
    folder.mkdir(exist_ok=True)
    trace = export.export_graph

    def remembered(module: Any, signature: Any, opset: int = OPSET) -> Any:
        config = getattr(module, "config", None)
        if not hasattr(config, "to_json_string"):
            return trace(module, signature, opset)
        state = hash_state(module.state_dict())
        known = folder / f"{hash_json([repr(module), config.to_json_string(), state, repr(signature), opset])}.onnx"
        if not known.exists():
            graph = trace(module, signature, opset)
            made = known.with_suffix(f".{os.getpid()}")
            save_model(graph, made, beside=False)
            made.rename(known)
        return load_whole(known)

    export.export_graph = remembered
    yield
    export.export_graph = trace


@pytest.fixture(autouse=True, scope="session")
def few_budgets() -> Iterator[None]:
    """Every run draws a curve over many budgets, which takes longer than all else that a tiny model goes through."""
    from lowrank.report.page import tradeoff as front

    every = front.KEEPS
    front.KEEPS = every[:2]
    yield
    front.KEEPS = every


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


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with a tokenizer, as a Hugging Face folder. Tests must not write to it."""
    return tiny_bert_folder(tmp_path_factory.mktemp("bert"))
