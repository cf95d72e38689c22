"""A budget of bytes: the plan whose file, written on trial, is as large as it may be."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from lowrank.backends import Backend
from lowrank.backends.inputs import Signature
from lowrank.backends.onnx.save import file_size
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan, stored_weights
from lowrank.core.selection.knapsack import Knapsack, bytes_of
from lowrank.edge.graph_file import make_graph
from lowrank.edge.target import Target
from lowrank.errors import InfeasibleBudget, UnsupportedModel
from lowrank.pipeline.plans import compressed_model, select
from lowrank.pipeline.session import Session
from lowrank.results.report import ONNX_FILE

TRIES, ROOM = 5, 1000
CLOSE, SMALL = 0.005, 3000
"""How much less than what is allowed is near enough: a share of it, or bytes."""


def sized_plan(session: Session, budget: Budget, selector: Knapsack, target: Target) -> Plan:
    """The plan of least error whose file has at most the budget's bytes, all of it counted, and which is as fast as the
    budget says, if it says so.

    What a file needs beside the weights that are chosen depends on the choice. So each plan is written, and the
    next one is made with what that came to.

    Raises:
        InfeasibleBudget: if there is none.
        UnsupportedModel: if no file can be written at all.
    """
    signature = session.dense.signature
    if not isinstance(signature, Signature):
        raise UnsupportedModel(f"a size is that of model.onnx, which cannot be written: {signature}")
    most = budget.most_bytes
    assert most is not None
    overhead, best, size, largest = _guess(session.dense, session.analysis), None, 0, -1
    for tried in session.track(range(TRIES), "fitting the size", TRIES):
        plan = select(session.analysis, budget, replace(selector, overhead=overhead))
        predicted = overhead + bytes_of(plan.options, session.analysis)
        size = _bytes_of(session.on_trial, plan, target)
        if size <= most and size > largest:
            best, largest = replace(plan, share=float(size)) if budget.kind == "size" else plan, size
        # A file that is smaller than it may be, as its speed asks for that, is no nearer with other bytes.
        if size <= most and (most - size <= max(CLOSE * most, SMALL) or predicted < (1 - CLOSE) * most):
            break
        # What nodes and padding come to differs from plan to plan: a little room is left for that.
        overhead = max(0, overhead + size - predicted) + tried * ROOM
    if best is None:
        raise InfeasibleBudget(
            f"no plan was found whose file has {int(most):,} bytes; the last one had {size:,}: give a little more"
        )
    return best


def _guess(backend: Backend, analysis: Analysis) -> int:
    """Weights that are not targeted in eight bits, and all else in 32; the first trial corrects it."""
    left = sum(w.params for w in backend.weights if w.name not in analysis)
    return left + 4 * max(0, backend.params - analysis.dense_params - left)


def _bytes_of(session: Session, plan: Plan, target: Target) -> int:
    """Of a plan's file: how numbers are fitted and rounded makes no difference to it."""
    small = compressed_model(session, plan, refit=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ONNX_FILE
        make_graph(small, path, target, stored=stored_weights(plan, session.analysis), plain=True)
        return file_size(path)
