"""A budget of speed on this machine: the plan is tried, and made again with what its graph really took."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lowrank.backends.base import signature_of
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan, stored_weights
from lowrank.edge.graph_file import fit_file, make_graph
from lowrank.edge.target import Target
from lowrank.errors import InfeasibleBudget
from lowrank.evaluate.latency import measure_latency
from lowrank.pipeline.plans import compressed_model
from lowrank.pipeline.session import Session

CLOSE = 0.03
"""How far from what is asked for a speed may be to be near enough, as a share of it."""
TRIES = 3
"""Plans that are tried at most."""


def measured_plan(
    session: Session, budget: Budget, find: Callable[[Budget], Plan], target: Target, rows: tuple[int, int]
) -> Plan:
    """The plan of least error that is as fast as asked for when its graph is timed beside the dense model's.

    Operators tell the time of a plan within a tenth or two. Where its graph is faster than it has to be, or slower than
    it may be, the plan is made anew, for a speed that is predicted as much lower or higher.

    Args:
        session: with the dense model and its analysis.
        budget: of a speed.
        find: what makes the plan of a predicted speed.
        target: what graphs are for, but for their types.
        rows: tokens of the sample that is timed, and threads.

    Raises:
        InfeasibleBudget: if no plan is predicted to be so fast.
    """
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.onnx"
        session.graph.write(dense)
        fit_file(dense, replace(target, dtype="float32"), signature_of(session.dense))

        def speed_of(plan: Plan) -> float:
            path, small = Path(folder) / "tried.onnx", compressed_model(session.on_trial, plan, refit=False)
            kind = replace(target, dtype="mixed" if plan.is_typed else "float32")
            make_graph(small, path, kind, stored=stored_weights(plan, session.analysis), plain=True)
            files = {"dense": dense, "tried": path}
            times = measure_latency(files, signature_of(session.dense), 1, *rows)
            return times["dense"] / times["tried"]

        plan = find(budget)
        found = [(speed_of(plan), plan)]
        with suppress(InfeasibleBudget):
            while len(found) < TRIES and abs(found[-1][0] / budget.limit - 1) > CLOSE:
                speed, plan = found[-1]
                other = find(Budget.speedup(max(1.0, budget.limit * plan.reached / speed), budget.file_bytes))
                if other.options == plan.options:
                    break
                found.append((speed_of(other), other))
    enough = [each for each in found if each[0] >= budget.limit * (1 - CLOSE)]
    # Of those that are fast enough the slowest, which loses least; else the one that comes nearest.
    speed, plan = min(enough, key=lambda each: each[0]) if enough else max(found, key=lambda each: each[0])
    short = f"it was {speed:.3g} times as fast when it was tried, and {budget.limit:g} times were asked for"
    return replace(plan, budget=budget, share=1 / speed, notes=plan.notes if enough else (*plan.notes, short))
