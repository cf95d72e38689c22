"""Tasks by their names: what `--task` may say, and where each kind is read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from importlib import import_module

from lowrank.backends.base import Backend
from lowrank.errors import TaskError
from lowrank.evaluate.judges import Judges
from lowrank.evaluate.tasks.base import Task
from lowrank.evaluate.tasks.fidelity import read_fidelity

Reader = Callable[[str, str, Backend], Task]
"""Makes a task of its name, what stands behind the colon, and the dense model."""

READERS = {
    "sts": "sentences:read_sts",
    "classify": "classify:read_classify",
    "lm": "language:read_lm",
    "images": "images:read_images",
    "retrieval": "retrieval:read_retrieval",
    "mteb": "with_mteb:read_mteb",
    "lm_eval": "with_lm_eval:read_lm_eval",
}
"""Where each kind is read that has data of its own."""
FORMS = (
    "fidelity, fidelity:FILE, sts:FILE, classify:FILE, lm:FILE, images:FOLDER, retrieval:FOLDER, mteb:NAME, "
    "lm_eval:NAME or package.module:function"
)


def read_tasks(specs: Sequence[str], dense: Backend, judges: Judges | None = None) -> list[Task]:
    """The tasks that some specs name, their data read and found to fit the model.

    Args:
        specs: as given to `--task`: `fidelity`, `sts:pairs.tsv`, ...
        dense: the original model; of it tasks know how to feed a model, and what the output means.
        judges: what `fidelity` without a file is measured by; by default on random inputs.

    Raises:
        TaskError: with the nearest name for one that is unknown, or what a file lacks.
    """
    if isinstance(dense.signature, str):
        raise TaskError(f"no task can be measured: {dense.signature}; give inputs with --calib inputs.npz, or --arch")
    return [_read(spec.strip(), dense, judges) for spec in dict.fromkeys(specs)]


def _read(spec: str, dense: Backend, judges: Judges | None) -> Task:
    kind, colon, rest = spec.partition(":")
    if kind == "fidelity":
        return read_fidelity(spec, rest, dense, judges)
    if kind in READERS:
        if not rest:
            form = next(form for form in re.split(r", | or ", FORMS) if form.startswith(f"{kind}:"))
            raise TaskError(f"--task {spec}: say what it is measured on: {form}")
        module, function = READERS[kind].split(":")
        reader: Reader = getattr(import_module(f"lowrank.evaluate.tasks.{module}"), function)
        return reader(spec, rest, dense)
    near = difflib.get_close_matches(kind, ("fidelity", *READERS), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if colon and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", kind) and rest.isidentifier():
        from lowrank.evaluate.tasks.callables import read_callable

        return read_callable(spec, kind, rest, dense, hint)
    raise TaskError(f"--task {spec}: there is no such task{hint}; give {FORMS}")
