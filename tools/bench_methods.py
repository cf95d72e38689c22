"""Quality at equal budgets: published formulas, and what each ingredient of this project adds, on several models.

    python tools/bench_methods.py --data DATA [--stories models/stories260K] [--vit vit] [--gpt gpt] --output bench

DATA holds stsb_train.tsv, stsb_dev.tsv, sst2_train.tsv, sst2_dev.tsv, tinyshakespeare.txt.gz,
wikitext2_tok_valid.txt.gz, and cisi, a collection in the layout of BEIR. `--vit` and `--gpt` are what
`train_vit.py --shifted` and `train_gpt.py` wrote. Every method runs in a process of its own; its seconds and its peak
memory are those of everything up to the last of its models. Above them stands what one would take instead of a
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
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import subjects
from measured import Cell, Table, publish
from published import PUBLISHED, Compressor, seen

import lowrank
from lowrank.calibrate.data import load_calibration
from lowrank.calibrate.interactions import measure_contexts
from lowrank.calibrate.refit import sequential_refit
from lowrank.calibrate.sensitivity import measure_sensitivity
from lowrank.core.analysis import Analysis
from lowrank.core.selection.knapsack import Knapsack
from lowrank.pipeline.plans import factorize
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
    yield "+ sequential refit (all)", compressor(calibration, whole, None, refit=True)
    yield "no refit, all but the two-sided metric", compressor(calibration, context, None, refit=False)
    for name in known(whole):
        rest = (*two, *(other for other in known(whole) if other != name))
        yield f"no refit, all but {name}", compressor(calibration, whole, rest, refit=False)


def known(analysis: Analysis) -> list[str]:
    """The structures beside two factors that the model's weights can have."""
    coupled = {coupling.structure for coupling in analysis.couplings}
    return ["pivoted", *(name for name in ("shared", "product", "rotary", "neurons") if name in coupled)]


def rows_of(subject: subjects.Subject, calibration: Any, label: str, compress: Compressor) -> Iterator[dict[str, Any]]:
    """One row for each keep ratio, with the seconds of its own."""
    backend = calibration.backend
    for keep in subject.keeps:
        start = time.perf_counter()
        try:
            module = backend.rewrite(compress(keep)).module
        except lowrank.LowRankError:
            continue
        seconds = time.perf_counter() - start
        yield {"method": label, "keep": keep, "found": subject.measure(module), "seconds": seconds}


def run(subject: subjects.Subject, method: str, settings: lowrank.Settings) -> list[dict[str, Any]]:
    """The rows of one method, or of all ingredients."""
    backend: Any = lowrank.open_model(subject.source)
    start = time.perf_counter()
    calibration: Any = load_calibration(
        backend, Path(str(settings.calib)), settings.column, settings.samples, settings.mixed
    )
    if method == "ingredients":
        return [row for label, made in ingredients(calibration) for row in rows_of(subject, calibration, label, made)]
    compress = (PUBLISHED | {OURS: ours})[method](calibration)
    once = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        {**row, "seconds": row["seconds"] + once, "peak": peak}
        for row in rows_of(subject, calibration, method, compress)
    ]


def table(subject: subjects.Subject, whole: Mapping[str, tuple[Cell, ...]], rows: list[dict[str, Any]]) -> Table:
    """`whole`: the models that are not compressed, the dense one first."""
    columns = {subject.name: "", "keep": "g"} | dict(subject.columns)
    lines: list[list[Cell]] = [[name, 1, *found, None, None] for name, found in whole.items()]
    lines += [[row["method"], row["keep"], *row["found"], row["seconds"], row.get("peak")] for row in rows]
    return Table(columns | {"seconds": ".0f", "peak MB": ".0f"}, lines)


def subject_of(name: str, args: argparse.Namespace, work: Path) -> subjects.Subject:
    if name == "minilm":
        return subjects.minilm(args.data, work)
    if name == "stories":
        return subjects.stories(args.stories, args.data, work)
    return subjects.gpt(args.gpt, args.data) if name == "gpt" else subjects.vit(args.vit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    for name in ("stories", "vit", "gpt"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--only", help="of minilm, stories, vit and gpt")
    parser.add_argument("--output", type=Path, default=Path("bench"))
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--elsewhere", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = [args.only] if args.only else ["minilm", *(n for n in ("stories", "vit", "gpt") if getattr(args, n))]
    with tempfile.TemporaryDirectory() as work:
        for name in names:
            subject = subject_of(name, args, Path(work))
            if args.method:
                print(json.dumps(run(subject, args.method, subject.elsewhere if args.elsewhere else subject.calib)))
                return
            opened: Any = lowrank.open_model(subject.source)
            whole = {"dense": subject.measure(opened.module), **subject.instead()}
            rows: list[dict[str, Any]] = []
            text = ""
            tasks = [(m, False) for m in (*PUBLISHED, OURS)] + [(m, True) for m in ELSEWHERE] + [("ingredients", False)]
            for method, elsewhere in tasks:
                command = [sys.executable, *sys.argv, "--only", name, "--method", method]
                command += ["--elsewhere"] if elsewhere else []
                found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                new = json.loads(found.splitlines()[-1])
                rows += [r | {"method": f"{r['method']}, calibrated elsewhere"} if elsewhere else r for r in new]
                text = publish(table(subject, whole, rows), args.output, f"methods-{name}")
            print(text, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
