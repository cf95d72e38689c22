"""With one sample there is nothing to hold out, and nothing is called so."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import trained_blocks
from rich.console import Console

import lowrank
from lowrank.artifacts import load_analysis
from lowrank.report.terminal.tables import spectra_table

WIDTH = 16


@pytest.mark.parametrize(("samples", "apart"), [(1, False), (4, True)])
def test_nothing_is_called_held_out(
    samples: int, apart: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.random.default_rng(0).normal(size=(samples, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=values)
    stages: list[str] = []

    def track(items: Any, label: str, total: int) -> Any:
        stages.append(str(label))
        return items

    settings = lowrank.Settings(calib=str(tmp_path / "x.npz"))
    report = lowrank.compress(
        trained_blocks(), 0.5, output=tmp_path / "run", settings=settings, latency=False, track=track
    )
    analysis = load_analysis(tmp_path / "run")
    screen = Console(file=io.StringIO(), width=200)
    screen.print(spectra_table(analysis))
    assert isinstance(screen.file, io.StringIO)
    said = "\n".join([screen.file.getvalue(), *stages, caplog.text, *report.notes])
    assert {record.heldout is not None for record in analysis.weights} == {apart}
    assert ("on held-out data" in said, "held-out fold" in stages) == (apart, apart)
    if not apart:
        # It is said that there is none, and nothing else.
        assert said.replace("too few samples for a held-out fold", "").count("held-out") == 0
