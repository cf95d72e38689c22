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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from builders import tiny_bert_folder
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # What a shell starts in the background ignores interrupts, and so would every process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run, whatever ran before."""
    import torch

    np.random.seed(0)
    torch.manual_seed(0)


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
        from lowrank.cli import main

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
