"""What a model's operators take where it will run, and so what it would take with other ranks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from lowrank.artifacts import parse_json
from lowrank.backends import Backend, Opening, open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.onnx.save import copy_graph
from lowrank.core.analysis import Analysis
from lowrank.core.selection.timings import COMPUTED, Timings, sizes_for
from lowrank.core.weight import Group, Weight
from lowrank.edge.graph_file import fit_file
from lowrank.edge.target import Dtype, Target
from lowrank.errors import TimingError
from lowrank.evaluate.dense_graph import DenseGraph
from lowrank.pipeline.budgets.whole_model import corrected, write_smallest
from lowrank.pipeline.session import Work, WorkOptions
from lowrank.pipeline.settings import Settings
from lowrank.pipeline.targets import targeted_groups
from lowrank.progress import Track, silent

TOKENS, THREADS, STEP = 128, 1, 16
SMALLEST = "smallest"
BOTH: tuple[Dtype, ...] = ("float32", "int8")
"""Types that a speedup is chosen from, if no table says which there are."""


def work_for(
    groups: Sequence[tuple[Group, Sequence[Weight]]],
    dtypes: Sequence[Dtype],
    *,
    tokens: int = TOKENS,
    threads: int = THREADS,
    step: int = STEP,
) -> dict[str, Any]:
    """The operators to time for some groups of weights; see `edge.kernels`.

    Args:
        groups: what can be decided on, with their weights.
        dtypes: of the weights; the operators of others than the first are under `others`.
        tokens: rows that are multiplied.
        threads: inside an operator.
        step: between sizes.

    Raises:
        TimingError: for a type that has no operators of its own.
    """
    from lowrank.edge.kernels import work_of

    unknown = [dtype for dtype in dtypes if dtype not in COMPUTED]
    if unknown:
        raise TimingError(
            f"operators can be timed for {', '.join(COMPUTED)}, and not for {unknown[0]}; leave --quantize out"
        )
    numbers = sum(weights[0].params for group, weights in groups if group.coupling is None)
    sizes = sizes_for(groups, step)
    first, *others = (
        work_of(sizes, numbers=numbers, tokens=tokens, threads=threads, dtype=COMPUTED[dtype], step=step)
        for dtype in dtypes
    )
    return {**first, **({"others": others} if others else {})}


def time_here(graph: DenseGraph, work: dict[str, Any], target: Target, track: Track = silent) -> Timings:
    """The table of this machine, the dense model as a whole included.

    Raises:
        TimingError: if the model cannot be run.
    """
    from lowrank.edge.timing_script import measure
    from lowrank.evaluate.latency import measure_latency

    signature = graph.dense.signature
    if not isinstance(signature, Signature):
        raise TimingError(f"the model cannot be timed as a whole: {signature}")
    works = [work, *work.get("others", ())]
    with tempfile.TemporaryDirectory() as folder:
        exact, paths = Path(folder) / "exact.onnx", dict[str, Path]()
        graph.write(exact)
        for each in works:
            path = paths[each["dtype"]] = exact.with_name(f"{each['dtype']}.onnx")
            copy_graph(exact, path)
            fit_file(path, replace(target, dtype=each["dtype"]), signature, plain=True)

        def whole() -> dict[str, float]:
            return measure_latency(paths, signature, 1, work["tokens"], work["threads"])

        # Like the operators the lowest of several medians: others may use the machine too.
        before = whole()
        table = Timings.from_json(measure(work, lambda items: track(items, "timing operators", len(items))))
        thin = write_smallest(exact, paths.setdefault(SMALLEST, exact.with_name("smallest.onnx")), table)
        fit_file(paths[SMALLEST], replace(target, dtype="float32"), signature)
        after = whole()
    lowest = {name: 1e3 * min(time, before.get(name, time)) for name, time in after.items()}
    tables = {each.dtype: replace(each, whole=lowest[each.dtype]) for each in (table, *table.others)}
    if "float32" in tables:
        tables = corrected(tables, thin, lowest[SMALLEST])
    first, *others = tables.values()
    return replace(first, others=tuple(replace(other, others=()) for other in others))


def bench_table(
    model: object,
    *,
    table: str | Path | None = None,
    script: str | Path | None = None,
    target: Target | None = None,
    dtypes: Sequence[Dtype] = BOTH,
    tokens: int = TOKENS,
    threads: int = THREADS,
    **options: Unpack[WorkOptions],
) -> dict[str, Any]:
    """Time a model's operators here, or write the script that does so elsewhere.

    Args:
        model: a path or a live module.
        table: the file for the timings of this machine.
        script: the file for a script that needs only numpy and onnxruntime.
        target: what graphs are for.
        dtypes: types of weights; a speedup chooses among those of the table, a share of the time is spent on one.
        tokens: in a sample.
        threads: inside an operator.
        options: `settings`, which weights; `opening`, how to build the model if its file does not say; `track`, which
            shows progress.

    Returns:
        `operators`, how many, and `whole_ms` of the dense model where it was measured.
    """
    from lowrank.edge.kernels import write_script

    target, asked = target or Target(), Work(**options)
    target.check()
    backend = open_model(model, asked.opening or Opening())
    groups = targeted_groups(backend, asked.settings or Settings())
    work = work_for(groups, dtypes, tokens=_rows(backend, tokens), threads=threads)
    figures: dict[str, Any] = {"operators": len(work["kernels"]), "whole_ms": None}
    if script is not None:
        write_script(work, Path(script))
    if table is not None:
        timings = time_here(DenseGraph(backend), work, target, asked.track)
        assert timings.whole is not None
        figures["whole_ms"] = timings.whole / 1e3
        Path(table).write_text(json.dumps(timings.to_json()), encoding="utf-8")
    return figures


def _rows(backend: Backend, tokens: int) -> int:
    """The rows that a sample of so many tokens is to the layers: no more than the model reads, or those of its image.

    Raises:
        TimingError: if that cannot be told.
    """
    signature = backend.signature
    if not isinstance(signature, Signature):
        raise TimingError(f"the model cannot be timed: {signature}")
    if signature.has_sequence:
        return min(tokens, signature.max_sequence)
    # Of an image the model itself makes rows.
    linear = [weight.name for weight in backend.weights if weight.is_linear and weight.role == "projection"][:8]
    counts: list[int] = []
    with backend.watching(dict.fromkeys(linear, "input")) as watch:
        watch(signature.example(1, 1), lambda _, gram: counts.append(gram.tokens))
    if not counts:
        raise TimingError(
            "it cannot be told how many tokens the model's layers read; a budget of time is for transformers"
        )
    return sorted(counts)[len(counts) // 2]


def model_times(
    graph: DenseGraph, analysis: Analysis, target: Target, dtypes: Sequence[Dtype], track: Track = silent
) -> Timings:
    """The table of this machine for all groups of an analysis.

    Args:
        graph: of the dense model.
        analysis: of the model.
        target: what graphs are for, but for its type.
        dtypes: types of weights.
        track: shows progress.

    Raises:
        TimingError: if the model, or a type, cannot be timed.
    """
    groups = [(group, analysis.weights_of(group)) for group in analysis.groups.values()]
    return time_here(graph, work_for(groups, dtypes, tokens=_rows(graph.dense, TOKENS)), target, track)


def read_table(path: Path) -> Timings:
    """A table of timings from a file.

    Raises:
        TimingError: if it is none.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TimingError(f"there is no {path}; measure with `lowrank bench MODEL --table {path}`") from None
    except (OSError, ValueError) as error:
        raise TimingError(f"{path} is no table of timings ({error}); measure again") from None
    if not isinstance(content, dict):
        raise TimingError(f"{path} is no table of timings; measure with `lowrank bench MODEL --table {path}`")
    return Timings.from_json(content)


def check_table(timings: Timings, dtype: Dtype) -> Timings:
    """The part of a table that is for a type of weights, with the others beside it.

    Raises:
        TimingError: if it has none.
    """
    found = timings.of(dtype)
    if found is None:
        raise TimingError(
            f"the table was measured for {timings.dtype}, and the graph will be in {dtype}; measure again with "
            "the same --quantize, or without"
        )
    everything = (timings, *timings.others)
    others = tuple(replace(table, others=()) for table in everything if table.dtype != found.dtype)
    return replace(found, others=others)
