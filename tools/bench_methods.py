"""Quality at equal budgets: published formulas, and what each ingredient of this project adds, on several models.

    python tools/bench_methods.py --data DATA [--stories models/stories260K] [--vit vit] [--gpt gpt] --output bench

DATA holds stsb_train.tsv, stsb_dev.tsv, sst2_train.tsv, sst2_dev.tsv, tinyshakespeare.txt.gz,
wikitext2_tok_valid.txt.gz, and cisi, a collection in the layout of BEIR. `--vit` and `--gpt` are what
`train_vit.py --shifted` and `train_gpt.py` wrote. Every method runs in a process of its own; its seconds and its peak
memory are those of everything up to this model. Above them stands what one would take instead of a
compressed model (`baselines.py`).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import subjects
from measured import Cell, Table, measured_before, publish
from published import PUBLISHED, Compressor, seen

import lowrank
from lowrank.calibrate.data import load_calibration
from lowrank.calibrate.interactions import measure_contexts
from lowrank.calibrate.refit import sequential_refit
from lowrank.calibrate.sensitivity import measure_sensitivity
from lowrank.core.analysis import Analysis
from lowrank.core.selection.knapsack import Knapsack
from lowrank.pipeline.plans import factorize
from lowrank.pipeline.refining import refine
from lowrank.progress import silent

OURS = "lowrank"
ELSEWHERE = ("SVD-LLM", OURS)
"""Methods that are also calibrated on another domain."""


class OneSided:
    """A backend that knows no curvature of its output."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def curvature(self, *_: object) -> Mapping[str, Any]:
        """None."""
        return {}


def measured(calibration: Any, *, curved: bool = True, contexts: bool = True) -> Analysis:
    """What `lowrank.analyze` measures, or less."""
    if not curved:
        calibration = replace(calibration, backend=OneSided(calibration.backend))
    analysis = measure_sensitivity(calibration, seen(calibration, couplings=True), silent)
    return measure_contexts(calibration, analysis, silent) if contexts else analysis


def compressor(calibration: Any, analysis: Analysis, structures: tuple[str, ...] | None, *, refit: bool) -> Compressor:
    """Exact choice over some structures, with the refit or without."""

    def compress(keep: float) -> Mapping[str, Any]:
        backend = calibration.backend
        plan = lowrank.select(analysis, keep, Knapsack(structures=structures))
        made = factorize(backend, analysis, plan)
        return sequential_refit(calibration, backend.rewrite(made), made, analysis, silent) if refit else made

    return compress


def ours(calibration: Any) -> Compressor:
    return compressor(calibration, measured(calibration), None, refit=True)


REFINED = "+ block refinement (all)"


def ingredients(calibration: Any) -> Iterator[tuple[str, Compressor]]:
    """From the activation-aware truncation on, one more thing at a time."""
    two = ("two_factor",)
    yield "exact choice of ranks, errors of layers", compressor(calibration, seen(calibration), two, refit=False)
    plain = measured(calibration, curved=False, contexts=False)
    yield "+ measured sensitivity", compressor(calibration, plain, two, refit=False)
    context = measure_contexts(calibration, plain, silent)
    yield "+ measured in context", compressor(calibration, context, two, refit=False)
    whole = measured(calibration)
    yield "+ two-sided metric", compressor(calibration, whole, two, refit=False)
    offered = two
    for name in known(whole):
        offered = (*offered, name)
        yield f"+ {name}", compressor(calibration, whole, offered, refit=False)
    everything = compressor(calibration, whole, None, refit=True)
    yield "+ sequential refit", everything
    yield REFINED, everything
    yield "no refit, all but the two-sided metric", compressor(calibration, context, None, refit=False)
    for name in known(whole):
        rest = (*two, *(other for other in known(whole) if other != name))
        yield f"no refit, all but {name}", compressor(calibration, whole, rest, refit=False)


def known(analysis: Analysis) -> list[str]:
    """The structures beside two factors that the model's weights can have."""
    coupled = {coupling.structure for coupling in analysis.couplings}
    return ["pivoted", *(name for name in ("shared", "product", "rotary", "neurons") if name in coupled)]


def rows_of(
    subject: subjects.Subject, calibration: Any, label: str, compress: Compressor, known: Container[list[Cell]]
) -> Iterator[dict[str, Any]]:
    """One row for each keep ratio that is not known, with the seconds of its own."""
    backend = calibration.backend
    for keep in subject.keeps:
        if [label, keep] in known:
            continue
        start = time.perf_counter()
        try:
            small = backend.rewrite(compress(keep))
        except lowrank.LowRankError:
            continue
        if label in (OURS, Task(OURS, True).label, REFINED):
            refine(calibration, small)
        seconds = time.perf_counter() - start
        yield {"method": label, "keep": keep, "found": subject.measure(small.module), "seconds": seconds}


def run(subject: subjects.Subject, task: Task, known: Container[list[Cell]]) -> Iterator[dict[str, Any]]:
    """The rows of one method, or of all ingredients."""
    settings = subject.elsewhere if task.elsewhere else subject.calib
    backend: Any = lowrank.open_model(subject.source)
    start = time.perf_counter()
    calibration: Any = load_calibration(
        backend, Path(str(settings.calib)), settings.column, settings.samples, settings.mixed
    )
    if task == INGREDIENTS:
        for label, made in ingredients(calibration):
            yield from rows_of(subject, calibration, label, made, known)
        return
    compress = (PUBLISHED | {OURS: ours})[task.method](calibration)
    once = time.perf_counter() - start
    for row in rows_of(subject, calibration, task.label, compress, known):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        yield {**row, "seconds": row["seconds"] + once, "peak": peak}


@dataclass(frozen=True)
class Task:
    """A method, or all ingredients, and whether it is calibrated on the other domain."""

    method: str
    elsewhere: bool = False

    @property
    def label(self) -> str:
        """Its name in the table."""
        return f"{self.method}, calibrated elsewhere" if self.elsewhere else self.method


METHODS = [*map(Task, (*PUBLISHED, OURS)), *(Task(method, True) for method in ELSEWHERE)]
INGREDIENTS = Task("ingredients")


def title_of(task: Task, subject: str) -> str:
    """The table that a task's rows are in."""
    return f"{'ingredients' if task == INGREDIENTS else 'methods'}-{subject}"


def columns_of(subject: subjects.Subject, task: Task) -> dict[str, str]:
    """Of its table; all ingredients share one process, so that none has a memory of its own."""
    told = {"seconds": ".0f"} if task == INGREDIENTS else {"seconds": ".0f", "peak MB": ".0f"}
    return {subject.name: "", "keep": "g"} | dict(subject.columns) | told


def measured_alone(name: str, task: Task) -> Iterator[dict[str, Any]]:
    """The rows of a task, in a process of its own."""
    command = [sys.executable, *sys.argv, "--only", name, "--method", task.method]
    command += ["--elsewhere"] if task.elsewhere else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise SystemExit(f"{task.label}: failed")


def bench(name: str, subject: subjects.Subject, task: Task, args: argparse.Namespace) -> None:
    """Add the rows of a task to its table."""
    columns, title = columns_of(subject, task), title_of(task, name)
    first = task in (METHODS[0], INGREDIENTS) and not args.resume
    rows = [] if first else measured_before(args.output, title, columns)
    if not rows:
        opened: Any = lowrank.open_model(subject.source)
        whole = {"dense": subject.measure(opened.module), **({} if task == INGREDIENTS else subject.instead())}
        empty = [None] * (len(columns) - 2 - len(subject.columns))
        rows = [[label, 1, *found, *empty] for label, found in whole.items()]
    # The task reads there what is known already.
    publish(Table(columns, rows), args.output, title)
    if task != INGREDIENTS and all([task.label, keep] in [row[:2] for row in rows] for keep in subject.keeps):
        return
    for row in measured_alone(name, task):
        told = [row[key] for key in ("seconds", "peak") if key in row]
        rows.append([row["method"], row["keep"], *row["found"], *told])
        print(publish(Table(columns, rows), args.output, title).splitlines()[-1], flush=True)


def main() -> None:
    parser = subjects.parser(__doc__)
    parser.add_argument("--resume", action="store_true", help="rows of the table that is there are not measured again")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--elsewhere", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        for name, subject in subjects.asked(args, Path(work)):
            if not args.method:
                for task in (*METHODS, INGREDIENTS):
                    bench(name, subject, task, args)
                continue
            task = Task(args.method, args.elsewhere)
            rows = measured_before(args.output, title_of(task, name), columns_of(subject, task))
            for row in run(subject, task, [row[:2] for row in rows]):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
