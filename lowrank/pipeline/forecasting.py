"""What `analyze` foretells: models of some keep ratios, tried on a few samples of every set."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from lowrank.artifacts.journal import FACTS
from lowrank.backends.inputs import Feed, batch_size
from lowrank.calibrate.interactions import replacements_at
from lowrank.calibrate.judging_set import JudgingSet
from lowrank.core.analysis import Analysis
from lowrank.core.forecast import Foretold
from lowrank.evaluate.judges import Judges
from lowrank.pipeline.session import Session

KEEPS = (0.8, 0.5, 0.3)
SAMPLES = 32
"""Of each set."""


def with_forecast(session: Session, analysis: Analysis) -> Analysis:
    """The analysis with the fidelity that models of some keep ratios have, as the knapsack chooses them.

    Their factors are those of the analysis alone, without the refit, which takes longer than all of this.
    """
    journal = session.journal
    judges = Judges(session.dense, (_some(each) for each in session.judges.sets))
    points: list[Foretold] = []
    for keep in session.track(KEEPS, "foretelling quality", len(KEEPS)):
        fidelity = journal.kept(f"forecast: {keep}", FACTS, partial(_tried, session, judges, analysis, keep))
        if fidelity is not None:
            points.append(Foretold(keep, fidelity, judges.kind))
    return replace(analysis, forecast=tuple(points))


def _tried(session: Session, judges: Judges, analysis: Analysis, keep: float) -> dict[str, float] | None:
    layers = replacements_at(session.dense, analysis, keep)
    if layers is None:
        return None
    quality = judges.quality_of(session.dense.rewrite(layers))
    # What is not finite answers nothing.
    return {row.name: row.fidelity if math.isfinite(row.fidelity) else 0.0 for row in quality.sets or ()}


def _some(whole: JudgingSet) -> JudgingSet:
    """Some samples of a set, spread over its batches."""
    total = sum(map(batch_size, whole.feeds))
    chosen = {i * total // SAMPLES for i in range(SAMPLES)} if total > SAMPLES else range(total)
    feeds, seen = list[Feed](), 0
    for feed in whole.feeds:
        rows = [i for i in range(batch_size(feed)) if seen + i in chosen]
        seen += batch_size(feed)
        if rows:
            feeds.append({name: values[rows] for name, values in feed.items()})
    return replace(whole, feeds=tuple(feeds))
