"""A sweep: all budgets from one analysis, and what else one could do, made and measured side by side."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from lowrank.artifacts import read_json, staged, write_json
from lowrank.artifacts.files import linked
from lowrank.artifacts.journal import close_journal, open_journal
from lowrank.artifacts.lock import holding
from lowrank.backends.inputs import Signature
from lowrank.backends.memory import available_memory
from lowrank.backends.onnx.save import file_size
from lowrank.core.selection.pareto import on_front
from lowrank.errors import ArtifactError, HealingError, LowRankError
from lowrank.evaluate.latency import measure_latency
from lowrank.healing.training import Training
from lowrank.parallel import one_thread_each
from lowrank.pipeline.run.layout import PAGE_FILE, RUN
from lowrank.pipeline.run.page import draw_page
from lowrank.pipeline.run.provenance import made_with
from lowrank.pipeline.search.bench import open_bench
from lowrank.pipeline.search.candidates import CandidateBuilder, copy_point
from lowrank.pipeline.search.methods import ALL, FRONT, Method, check_names, data_of, families
from lowrank.pipeline.session import Session, WorkOptions
from lowrank.progress import Track
from lowrank.report.advice import advice
from lowrank.report.page.sweep_plot import sweep_file
from lowrank.results.sweep import Point, Sweep
from lowrank.version import __version__

STAGE = "sweep"
PICTURE_FILE, POINTS_FOLDER = "sweep.svg", "points"
KEEPS = (0.8, 0.5, 0.3, 0.2)
MINUTES = 2.0
"""For the student, unless something else says how long."""
SEQUENCE = 128
"""Tokens of a sample that is timed."""


@one_thread_each()
@holding("output")
def sweep(
    model: object,
    *,
    output: str | Path = RUN,
    keeps: Sequence[float] = KEEPS,
    task: str = "fidelity",
    heal: Training | float | None = None,
    distil: Training | float | None = None,
    write: Sequence[str] = (),
    **options: Unpack[WorkOptions],
) -> Sweep:
    """Solve all budgets from one analysis, make what else one could do, and measure all of it side by side.

    Everything is measured as the `model.onnx` that would be shipped: its bytes, its time in ONNX Runtime (all files in
    turn in one process), and its quality. Writes `analysis.json`, `sweep.json` and `sweep.svg`, and to `points/` the
    points that are asked for.

    Args:
        model: a path or a live `nn.Module`.
        output: the run folder. A sweep that is there already, of the same model with the same options, is not made
            again: then only what `write` names is.
        keeps: keep ratios, of low rank and of pruning.
        task: what quality is; see `evaluate.tasks.read_tasks`.
        heal: also train each low-rank model, in this way or for so many minutes.
        distil: train the student so; by default as long as models are healed, or two minutes; 0 leaves it out.
        write: names of points whose `model.onnx` and `model/` are kept, or `front`, or `all`.
        options: `settings`, which weights, and on what data; `opening`, how to build the model if its file does not
            say; `execution`, whether to go on with a sweep that was interrupted; `track`, which shows progress.

    Raises:
        LowRankError: with what to try.

    Example:
        sweep = lowrank.sweep("my-model", task="sts:pairs.tsv", write=["front"])
    """
    run = Path(output).expanduser()
    ways = Ways(keeps=_sound(keeps), heal=_training(heal), distil=_distillation(heal, distil))
    check_names(write, [kind for family in ways.families for kind in family])
    bench = open_bench(model, run, task, ways.heal is not None, **options)
    session = bench.session
    identity = {
        "model": session.dense.source["fingerprint"],
        "version of lowrank": __version__,
        "analysis": session.analysis.fingerprint,
        "keep ratios": ways.keeps,
        "task": [task, data_of(task)],
        "healing": ways.heal and asdict(ways.heal),
        "distillation": ways.distil and asdict(ways.distil),
    }
    before = _finished(run, identity)
    if before is not None and not write:
        return before
    journal = open_journal(run, STAGE, {**identity, "written": list(write)}, session.execution.resume)
    assert journal.folder is not None
    builder = CandidateBuilder(bench, journal.folder, ways.heal, ways.distil, session.execution.resume, bool(write))
    kinds, left_out = _made(builder, session, _wanted(ways, before, write))
    points = _points(builder, session, kinds)
    if before is not None:
        left_out, points = before.left_out, _merged(before.points, points)
    chosen = on_front([point.result for point in points])
    points = [replace(point, on_front=front) for point, front in zip(points, chosen, strict=True)]
    result = Sweep(
        task=bench.figures,
        shape=_shape(bench.signature),
        points=points,
        left_out=left_out,
        advice=advice(points),
        seconds=session.clock.seconds,
        identity=identity,
        provenance=bench.origin,
    )
    _write(run, result, {kind.name: builder.path(kind).parent for kind in kinds}, write, before is not None)
    close_journal(run, STAGE)
    failed = draw_page(run, session.analysis, made_with())
    if failed is not None:
        return replace(result, left_out=[*left_out, {"name": PAGE_FILE, "reason": failed}])
    return result


@dataclass(frozen=True, kw_only=True)
class Ways:
    """What a sweep makes: keep ratios, and how models are trained."""

    keeps: list[float]
    heal: Training | None
    distil: Training | None

    @property
    def families(self) -> list[list[Method]]:
        """The points of each model."""
        return families(self.keeps, self.distil is not None, self.heal is not None)


def _training(heal: Training | float | None) -> Training | None:
    heal = Training(minutes=heal) if isinstance(heal, int | float) else heal
    if heal is not None and heal.adapter is not None:
        raise HealingError("a sweep heals factors; leave the adapter to `lowrank heal`")
    return heal


def _distillation(heal: Training | float | None, distil: Training | float | None) -> Training | None:
    """How the student is trained; None if there is none."""
    distil = (heal or MINUTES) if distil is None else distil
    return distil if isinstance(distil, Training) else Training(minutes=distil) if distil > 0 else None


def _wanted(ways: Ways, before: Sweep | None, write: Sequence[str]) -> list[list[Method]]:
    """The models to make; beside an earlier sweep only the dense one and those that are to be written."""
    if before is None:
        return ways.families
    named = {name for word in write for name in _named(word, before.points)}
    return [each for each in ways.families if each[0].method == "dense" or named & {kind.name for kind in each}]


def _made(
    builder: CandidateBuilder, session: Session, wanted: Sequence[list[Method]]
) -> tuple[list[Method], list[dict[str, str]]]:
    """The points that could be made, and those that could not, with the reason.

    Raises:
        LowRankError: if the dense model cannot be written or measured.
    """
    left_out: list[dict[str, str]] = []
    for family in session.track(wanted, "making points", len(wanted)):
        try:
            with session.clock.stage(family[0].name):
                builder.make(family)
        except LowRankError as error:
            if family[0].method == "dense":
                raise
            left_out += [{"name": k.name, "reason": str(error)} for k in family if builder.known(k) is None]
    return [kind for family in wanted for kind in family if builder.known(kind) is not None], left_out


def _points(builder: CandidateBuilder, session: Session, kinds: Sequence[Method]) -> list[Point]:
    """What points came to, timed side by side."""
    with session.clock.stage("latency"):
        times = _times({kind.name: builder.path(kind) for kind in kinds}, builder.bench.signature, session.track)
    return [_point(kind, builder.known(kind) or {}, times[kind.name]) for kind in kinds]


def _shape(signature: Signature) -> str:
    return f"1 x {min(SEQUENCE, signature.max_sequence)}" if signature.has_sequence else "1"


def _write(run: Path, sweep: Sweep, folders: Mapping[str, Path], write: Sequence[str], again: bool) -> None:
    """Write a sweep, and the points that are asked for beside those that an earlier time wrote."""
    with staged(run, owned=(Sweep.file, PICTURE_FILE, POINTS_FOLDER)) as stage:
        written = {name for word in write for name in _named(word, sweep.points)}
        for name in folders.keys() & written:
            copy_point(folders[name], stage / POINTS_FOLDER / name)
        for earlier in (run / POINTS_FOLDER).iterdir() if again and (run / POINTS_FOLDER).is_dir() else ():
            if not (stage / POINTS_FOLDER / earlier.name).exists():
                shutil.copytree(earlier, stage / POINTS_FOLDER / earlier.name, copy_function=linked)
        write_json(stage / Sweep.file, "sweep", sweep.to_json())
        (stage / PICTURE_FILE).write_text(sweep_file(sweep.points, sweep.task["metric"]), encoding="utf-8")


def _sound(keeps: Sequence[float]) -> list[float]:
    odd = [keep for keep in keeps if not 0 < keep < 1]
    if odd or not keeps:
        raise LowRankError(
            f"{odd[0]:g} is no keep ratio" if odd else "no keep ratios are named; give some such as 0.8,0.5,0.3"
        )
    return sorted(set(keeps), reverse=True)


def _finished(run: Path, identity: Mapping[str, Any]) -> Sweep | None:
    """The sweep in a run, if it is the one that is asked for."""
    if not (run / Sweep.file).is_file():
        return None
    try:
        sweep = Sweep.from_json(read_json(run / Sweep.file, "sweep"))
    except ArtifactError:
        return None
    return sweep if sweep.identity == dict(identity) else None


def _named(word: str, points: Sequence[Point]) -> list[str]:
    """The names of the points that a word of `write` stands for."""
    if word == ALL:
        return [point.name for point in points]
    return [point.name for point in points if point.on_front] if word == FRONT else [word]


def _times(files: Mapping[str, Path], signature: Signature, track: Track) -> dict[str, float]:
    """Milliseconds of all files, in turn in one process; as many at a time as there is memory for.

    With several groups the dense model is in each, and times are what they would be beside the first one's.
    """
    first, *rest = files
    groups, room = [list[str]()], available_memory() // 4
    for name in rest:
        size = sum(file_size(files[each]) for each in (first, *groups[-1], name))
        if groups[-1] and size > room:
            groups.append([])
        groups[-1].append(name)
    milliseconds: dict[str, float] = {}
    for group in track(groups, f"timing {len(files)} files in turn", len(groups)):
        times = measure_latency({name: files[name] for name in (first, *group)}, signature, 1, SEQUENCE)
        scale = milliseconds[first] / times[first] if milliseconds else 1.0
        milliseconds |= {name: times[name] * scale for name in times if name not in milliseconds}
    return milliseconds


def _point(kind: Method, known: Mapping[str, Any], ms: float) -> Point:
    facts = {key: value for key, value in known.items() if key != "schema"}
    return Point(name=kind.name, **asdict(kind), ms=ms, **facts)


def _merged(before: Sequence[Point], now: Sequence[Point]) -> list[Point]:
    """The points of an earlier sweep, with those that came out otherwise this time: training goes by the clock.

    Times of the new ones are what they would have been beside the dense model of that time.
    """
    again = {point.name: point for point in now}
    scale = before[0].ms / now[0].ms
    points: list[Point] = []
    for point in before:
        new = again.get(point.name)
        same = new is None or (new.bytes, new.quality) == (point.bytes, point.quality)
        points.append(point if new is None or same else replace(new, ms=new.ms * scale))
    return points
