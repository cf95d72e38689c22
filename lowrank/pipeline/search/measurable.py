"""A session whose model is measured on one task, as sweeps and tuning need."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from lowrank.backends import Backend
from lowrank.errors import UnsupportedModel
from lowrank.evaluate.tasks import Task, read_tasks
from lowrank.pipeline.analyzing import analyzed, saved
from lowrank.pipeline.execution import Execution
from lowrank.pipeline.healing import check_trainable
from lowrank.pipeline.session import Session, WorkOptions, open_session


def open_measurable(
    model: object, run: Path, task: str, trained: bool, **options: Unpack[WorkOptions]
) -> tuple[Session, Task]:
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
    (measure,) = read_tasks([task], session.dense, session.samples)
    return saved(analyzed(session)), measure
