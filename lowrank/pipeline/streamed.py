"""Compressing what is never whole in memory: a weight is read, factored, written, and let go."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from lowrank.artifacts import save_analysis, staged, write_json
from lowrank.artifacts.analysis import ANALYSIS_FILES
from lowrank.artifacts.files import linked
from lowrank.backends.checkpoint.backend import CheckpointBackend
from lowrank.backends.checkpoint.write import (
    Written,
    copy_tensors,
    finish,
    is_copied,
    shard_name,
    write_factors,
    written,
)
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan
from lowrank.core.structures import factorize_option, structure_named
from lowrank.core.structures.base import Option
from lowrank.errors import UnsupportedModel
from lowrank.evaluate.planned import planned_report
from lowrank.pipeline.run.layout import MODEL_FOLDER, PLAN_FILE, RESULTS
from lowrank.pipeline.run.provenance import provenance
from lowrank.pipeline.run.write import write_report
from lowrank.pipeline.session import Session
from lowrank.results.report import Report


@dataclass(frozen=True, slots=True)
class _Task:
    option: Option
    analysis: Analysis
    """Of its weight alone, as it may be sent to another machine."""
    file: str


@dataclass(frozen=True, slots=True)
class _FactorJob:
    """Reads a weight, factors it and writes the factors, wherever it runs."""

    backend: CheckpointBackend
    folder: Path

    def __call__(self, task: _Task) -> Written:
        path = self.folder / task.file
        known = written(path)
        if known is not None:
            return known
        ((name, replacement),) = factorize_option(task.option, task.analysis, self.backend).items()
        return write_factors(self.backend, name, replacement, path)


@dataclass(frozen=True, slots=True)
class _CopyJob:
    """Copies what stays of one shard."""

    backend: CheckpointBackend
    folder: Path

    def __call__(self, task: tuple[str, Sequence[str]]) -> None:
        file, names = task
        if not is_copied(self.backend, names, self.folder / file):
            copy_tensors(self.backend, names, self.folder / file)


def refuse_whole(**asked: object) -> None:
    """Refuse what takes the whole model.

    Raises:
        UnsupportedModel: if any of it was asked for; the message names it.
    """
    named = [name.replace("_", "-") for name, value in asked.items() if value]
    if named:
        _refuse(named[0])


def _refuse(option: str) -> NoReturn:
    raise UnsupportedModel(
        f"the model is streamed weight by weight, and --{option} needs the whole of it in memory: allow it more with "
        "--memory, on a machine that has it, or leave that out"
    )


def compress_streamed(session: Session, plan: Plan, run: Path) -> Report:
    """Write the compressed checkpoint of a plan to a run, and its report; shards are the pieces of the journal."""
    backend, analysis, journal = session.dense, session.analysis, session.journal
    clock, track = session.clock, session.track
    assert isinstance(backend, CheckpointBackend) and journal.folder is not None
    folder = journal.folder / MODEL_FOLDER
    folder.mkdir(exist_ok=True)
    chosen = [option for option in plan.options if not structure_named(option.structure).is_dense]
    factored = {backend.stored[name] for o in chosen for name in analysis.groups[o.group].weights}
    rest = _rest(backend, factored)
    count = len(chosen) + len(rest)
    tasks = [_Task(o, _alone(o.group, analysis), shard_name(i, count)) for i, o in enumerate(chosen)]
    copies = [(shard_name(len(chosen) + i, count), names) for i, names in enumerate(rest)]
    weights = [backend.by_name[name] for o in chosen for name in analysis.groups[o.group].weights]
    with session.execution.pool(weights, bool(analysis.grams)) as pool:
        with clock.stage("factorize"):
            jobs = pool.map(_FactorJob(backend, folder), tasks)
            parts = list(track(jobs, "factorizing", len(tasks)))
        with clock.stage("save"):
            list(track(pool.map(_CopyJob(backend, folder), copies), "copying the rest", len(copies)))
            after = finish(backend, folder, parts)
    report = _report(backend, analysis, plan, parts, after)
    with staged(run, owned=(*RESULTS, *ANALYSIS_FILES)) as stage:
        save_analysis(analysis, stage)
        # Linked and not moved: until all is in place, a run that is killed finds its pieces again.
        shutil.copytree(folder, stage / MODEL_FOLDER, copy_function=linked)
        write_json(stage / PLAN_FILE, "plan", plan.to_json())
        report = replace(report, seconds=clock.seconds, provenance=provenance(analysis, plan, refit=False))
        return write_report(stage, run, analysis, plan, report)


def _alone(name: str, analysis: Analysis) -> Analysis:
    """What is known of one weight."""
    # Moments and directions stay on disk until they are asked for, on whatever machine that is.
    return Analysis((analysis[name],), grams=analysis.grams, leading=analysis.leading)


def _rest(backend: CheckpointBackend, factored: set[str]) -> list[list[str]]:
    """What is copied, in the order of each old shard."""
    by_file: dict[str, list[str]] = {}
    for name, stored in sorted(backend.shards.tensors.items(), key=lambda item: item[1].start):
        if name not in factored:
            by_file.setdefault(stored.file, []).append(name)
    return [by_file[file] for file in sorted(by_file)]


def _report(backend: CheckpointBackend, analysis: Analysis, plan: Plan, parts: Sequence[Written], after: int) -> Report:
    energy = {r.weight.name: float(np.square(r.plain.values).sum()) for r in analysis.weights}
    cast = {each.name: each.cast for each in parts}
    total = sum(energy.values())
    params = backend.params - analysis.dense_params + plan.cost
    report = planned_report(backend, params, after, analysis, plan)
    report.notes.append(
        f"no model.onnx and no measured quality: {backend.refusal}. Errors are those of "
        "the weights. `cast` is the further error of rounding the factors to the weights' own types"
    )
    error = replace(
        report.error,
        cast_relative=(sum(cast.values()) / total) ** 0.5 if total else 0.0,
        cast_per_weight={name: (lost / energy[name]) ** 0.5 if energy[name] else 0.0 for name, lost in cast.items()},
    )
    return replace(report, error=error)
