"""Bench: a session whose files are scored on one task, as sweeps and tuning need."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from lowrank.backends import Backend
from lowrank.backends.inputs import Signature
from lowrank.errors import ExportError, UnsupportedModel
from lowrank.evaluate.graph import FileModel
from lowrank.evaluate.tasks.base import Score, Task
from lowrank.evaluate.tasks.benchmark import compare
from lowrank.evaluate.tasks.specs import read_tasks
from lowrank.healing.training import check_trainable
from lowrank.pipeline.analyzing import with_analysis, with_saved_analysis
from lowrank.pipeline.execution import Execution
from lowrank.pipeline.session import Session, WorkOptions, open_session
from lowrank.results.parts import Comparison


@dataclass(frozen=True)
class Bench:
    """A session with an analysis, and the task that its graphs are scored on."""

    session: Session
    task: Task

    @property
    def signature(self) -> Signature:
        """The inputs and outputs of the dense model."""
        assert isinstance(self.session.dense.signature, Signature)
        return self.session.dense.signature

    @property
    def figures(self) -> dict[str, Any]:
        """What a result says of the task."""
        return {
            "name": self.task.name,
            "metric": self.task.metric,
            "higher_is_better": self.task.higher_is_better,
        }

    @property
    def origin(self) -> dict[str, Any]:
        """What a result says of where it comes from."""
        return {"command": sys.argv, "source": dict(self.session.dense.source)}

    def score(self, graph: Path) -> Score:
        """What a graph scores on the task."""
        return self.task.score(FileModel(graph, self.signature))

    def compared(self, dense: Score, other: Score) -> Comparison:
        """The score of a graph beside that of the dense model.

        Raises:
            ExportError: if it is no number.
        """
        row = compare(self.task, dense, other)
        if not math.isfinite(row.drop):
            raise ExportError(f"its {self.task.metric} is no number")
        return row


def open_bench(model: object, run: Path, task: str, trained: bool, **options: Unpack[WorkOptions]) -> Bench:
    """A session with its analysis in the run, and the task that quality is.

    Args:
        model: a path or a live module.
        run: the run folder.
        task: a spec; see `read_tasks`.
        trained: whether compressed models are to be trained.
        options: see `open_session`.

    Raises:
        LowRankError: if the model cannot be run or trained, or the task not be read.
    """

    def check(dense: Backend) -> None:
        if trained:
            check_trainable(dense)

    options["execution"] = (options.get("execution") or Execution()).whole
    session = open_session(model, run, check=check, **options)
    if isinstance(session.dense.signature, str):
        raise UnsupportedModel(
            f"nothing can be measured: {session.dense.signature}; see --arch, --config and --calib inputs.npz"
        )
    # A task that cannot be read must not cost an analysis.
    (measure,) = read_tasks([task], session.dense, session.judges)
    return Bench(with_saved_analysis(with_analysis(session)), measure)
