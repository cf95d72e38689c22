"""What statistics offers beyond the choice of text: each idea against the default, on all-MiniLM-L6-v2.

    python tools/bench_moments.py --data DATA [--keeps 0.5 0.3] [--resume] --output bench

All rows are calibrated on the same built-in text. Each idea changes the second moments that directions are chosen by,
or how sensitivities are measured, before ranks are chosen and layers are refitted as always:

- shrunk to their diagonal, or to the weights' own metric (a multiple of the identity), by the share that is named, in
  the manner of Ledoit and Wolf 2004;
- samples of all lengths count alike, whatever their number of tokens; or late positions count twice;
- channels with a root mean square above three times the median's are held to that;
- the loss of each cut is the worst of those on short, middle and long samples, so that the choice of ranks looks after
  the set that loses most.

`--samples 400` is enough to try it. The analysis stays in the folder `moments-run`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import itertools

from measured import Cell, Table, measured_before, publish
from sentences import PASSAGES, RETRIEVAL, SIMILARITY, Judge, minilm_folder, of_module

import lowrank
from lowrank.calibrate.collect import collect_grams
from lowrank.calibrate.sensitivity import measure_sensitivity
from lowrank.core.analysis import Analysis, Folds
from lowrank.core.truncation.gram import Gram
from lowrank.pipeline.analyzing import analyze_couplings, analyze_weights, with_analysis
from lowrank.pipeline.plans import compressed_model, select
from lowrank.pipeline.session import Session, open_session
from lowrank.progress import silent

CLASSES = (32, 96)
"""Tokens up to which a sample is short, and middle."""
HELD = 3.0
Moments = Mapping[str, Folds]
COLUMNS = {"moments": "", "keep": "g", SIMILARITY: ".4f", RETRIEVAL: ".1f", PASSAGES: ".4f", "seconds": ".0f"}


def scaled(gram: Gram, weight: float) -> Gram:
    """A Gram whose tokens count so much each."""
    total = None if gram.total is None else gram.total * weight
    tokens = max(1, round(gram.tokens * weight)) if gram.tokens else 0
    return replace(gram, moment=gram.moment * weight, tokens=tokens, energy=gram.energy * weight, total=total)


def by_class(session: Session) -> list[Session]:
    """The session on its short, its middle and its long samples."""
    assert session.calibration is not None
    edges = (0, *CLASSES, 1 << 30)
    parts: list[Session] = []
    for low, high in itertools.pairwise(edges):
        fit, heldout = (
            tuple(feed for feed in fold if low < feed["input_ids"].shape[1] <= high)
            for fold in (session.calibration.fit, session.calibration.heldout)
        )
        if fit and heldout:
            parts.append(replace(session, calibration=replace(session.calibration, fit=fit, heldout=heldout)))
    return parts


def moments_of(session: Session) -> Moments:
    """Of all targeted weights."""
    assert session.calibration is not None
    coupled = {name for each in session.analysis.couplings for name in each.group.weights}
    return collect_grams(session.calibration, [r.weight for r in session.analysis.weights], silent, coupled)


def mapped(change: Callable[[str, Gram], Gram]) -> Callable[[Session], Session]:
    """The idea that changes the Gram of each weight's fit fold."""

    def idea(session: Session) -> Session:
        grams = session.analysis.grams
        return with_moments(session, {n: Folds(change(n, f.fit), f.heldout) for n, f in grams.items()})

    return idea


def with_moments(session: Session, grams: Moments) -> Session:
    """The session with directions and errors of other moments, and the sensitivities that it had."""
    known, dense = session.analysis, session.dense
    weights = [record.weight for record in known.weights]
    records = analyze_weights(dense, weights, grams)
    couplings = [each.group.coupling for each in known.couplings if each.group.coupling is not None]
    again = {(c.group.name, c.structure): c for c in analyze_couplings(dense, list(dict.fromkeys(couplings)), grams)}
    analysis = replace(
        known,
        grams=grams,
        weights=tuple(replace(new, measured=old.measured) for new, old in zip(records, known.weights, strict=True)),
        couplings=tuple(replace(again[c.group.name, c.structure], measured=c.measured) for c in known.couplings),
        curvatures={},
    )
    for name, curvature in known.curvatures.items():
        analysis = analysis.with_curvature(name, dense.read(name), curvature)
    return replace(session, current=analysis)


def diagonal(share: float) -> Callable[[Session], Session]:
    def shrunk(_: str, gram: Gram) -> Gram:
        return replace(gram, moment=(1 - share) * gram.moment + share * np.diag(np.diag(gram.moment)))

    return mapped(shrunk)


def own_metric(session: Session, share: float) -> Session:
    def shrunk(name: str, gram: Gram) -> Gram:
        weight = session.dense.read(name)
        plain = np.eye(weight.shape[1]) if gram.side == "input" else weight @ weight.T
        return replace(gram, moment=(1 - share) * gram.moment + share * gram.energy / weight.shape[1] * plain)

    return mapped(shrunk)(session)


def weighted(weight: Callable[[float], float]) -> Callable[[Session], Session]:
    """Tokens of the three classes of samples count by their mean length."""

    def idea(session: Session) -> Session:
        parts = by_class(session)
        weights: list[float] = []
        for part in parts:
            assert part.calibration is not None
            shapes = [feed["input_ids"].shape for feed in part.calibration.fit]
            weights.append(weight(sum(n * t for n, t in shapes) / sum(n for n, _ in shapes)))
        all_moments = [moments_of(part) for part in parts]
        grams: dict[str, Folds] = {}
        for name, folds in session.analysis.grams.items():
            first, *rest = (scaled(m[name].fit, w) for m, w in zip(all_moments, weights, strict=True))
            for gram in rest:
                first = first + gram
            grams[name] = Folds(first, folds.heldout)
        return with_moments(session, grams)

    return idea


def held(_: str, gram: Gram) -> Gram:
    size = np.sqrt(np.maximum(np.diag(gram.moment), 0))
    factor = np.minimum(1, HELD * np.median(size) / np.maximum(size, 1e-12))
    return replace(gram, moment=gram.moment * factor * factor[:, None])


def worst_of_classes(session: Session) -> Session:
    def measured(part: Session) -> Analysis:
        assert part.calibration is not None
        return measure_sensitivity(part.calibration, session.analysis, silent)

    found = [measured(part) for part in by_class(session)]

    def worst(pairs: Sequence[Any]) -> tuple[tuple[float, float], ...]:
        return tuple((each[0][0], max(lost for _, lost in each)) for each in zip(*pairs, strict=True))

    known = session.analysis
    weights = (replace(r, measured=worst([a[r.weight.name].measured for a in found])) for r in known.weights)
    couplings = (
        replace(c, measured=worst([a.couplings[i].measured for a in found])) for i, c in enumerate(known.couplings)
    )
    return replace(session, current=replace(known, weights=tuple(weights), couplings=tuple(couplings)))


IDEAS: Mapping[str, Callable[[Session], Session]] = {
    "as they are": lambda session: session,
    "shrunk to their diagonal, 0.1": diagonal(0.1),
    "shrunk to their diagonal, 0.3": diagonal(0.3),
    "shrunk to the weights' own metric, 0.1": lambda session: own_metric(session, 0.1),
    "samples of all lengths count alike": weighted(lambda length: 32 / length),
    "late positions count twice": weighted(lambda length: 2.0 if length > CLASSES[1] else 1.0),
    "huge channels are held": mapped(held),
    "sensitivity: the worst of three lengths": worst_of_classes,
}


def rows_of(
    judge: Judge, session: Session, keeps: Sequence[float], known: Container[list[Cell]]
) -> Iterator[list[Cell]]:
    """One row for each idea and keep ratio that is not known."""
    for name, idea in IDEAS.items():
        wanted = [keep for keep in keeps if [name, keep] not in known]
        if not wanted:
            continue
        start = time.perf_counter()
        changed = idea(session)
        for keep in wanted:
            model: Any = compressed_model(changed, select(changed.analysis, keep))
            seconds = time.perf_counter() - start
            found = judge.by_name(of_module(model.module))
            yield [name, keep, found[SIMILARITY], found[RETRIEVAL], found[PASSAGES], seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--resume", action="store_true", help="rows of the table that is there are not measured again")
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=Path("bench"))
    args = parser.parse_args()
    source = str(minilm_folder())
    opened: Any = lowrank.open_model(source)
    judge = Judge(args.data, of_module(opened.module))
    settings, run = lowrank.Settings(samples=args.samples), args.output / "moments-run"
    if not (run / "analysis.json").exists():
        lowrank.analyze(source, settings=settings, output=run)
    session = with_analysis(open_session(source, run, settings=settings))
    rows = measured_before(args.output, "moments", COLUMNS) if args.resume else []
    for row in rows_of(judge, session, args.keeps, [row[:2] for row in rows]):
        rows.append(row)
        print(publish(Table(COLUMNS, rows), args.output, "moments").splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
