"""How the plan of a request is found: one strategy for each kind of budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from lowrank.core.budget import Budget
from lowrank.core.plan import Plan, check_budget
from lowrank.core.selection.knapsack import Knapsack, share_in_time
from lowrank.errors import InfeasibleBudget
from lowrank.evaluate.tasks.benchmark import Benchmark
from lowrank.pipeline.budgets.file_size import sized_plan
from lowrank.pipeline.budgets.measured_speed import measured_plan
from lowrank.pipeline.budgets.operator_times import BOTH, model_times
from lowrank.pipeline.budgets.quality_drop import Search
from lowrank.pipeline.plans import read_plan, select
from lowrank.pipeline.request import PlanSource, Request
from lowrank.pipeline.session import Session

Strategy = Callable[[Session, Request, Benchmark | None], Plan]


def find_plan(session: Session, request: Request, benchmark: Benchmark | None) -> Plan:
    """The plan that a request asks for.

    Raises:
        InfeasibleBudget: if there is none.
        PlanMismatch: if one is given that is of another model.
    """
    return STRATEGIES[request.kind](session, request, benchmark)


def _by_share(session: Session, request: Request, _: Benchmark | None) -> Plan:
    with session.clock.stage("select"):
        return _given(session, request, request.budget) or select(session.analysis, _budget(request), request.selector)


def _by_time(session: Session, request: Request, _: Benchmark | None) -> Plan:
    analysis, target, selector = session.analysis, request.target, request.selector
    with session.clock.stage("time operators"):
        timings = request.timings
        if timings is None:
            dtypes = BOTH if _budget(request).kind == "speedup" else (target.dtype,)
            timings = model_times(session.graph, analysis, target, dtypes, session.track)
    budget = _budget(request).of_whole(None if timings.whole is None else timings.whole / 1e3)
    budget = budget.of_original(session.dense.nbytes)
    with session.clock.stage("select"):
        plan = _given(session, request, None)
        if plan is not None:
            share = share_in_time(plan.options, analysis, timings)
            return check_budget(replace(plan, budget=budget, share=share))
        if selector is None or isinstance(selector, Knapsack):
            selector = replace(selector or Knapsack(), timings=timings)

        def find(asked: Budget) -> Plan:
            if asked.file_bytes is not None and isinstance(selector, Knapsack):
                return sized_plan(session, asked, selector, replace(target, dtype="mixed"))
            return select(analysis, asked, selector)

        if budget.kind == "speedup" and request.timings is None:
            return measured_plan(session, budget, find, target, (timings.tokens, timings.threads))
        return find(budget)


def _by_size(session: Session, request: Request, _: Benchmark | None) -> Plan:
    budget = _budget(request).of_original(session.dense.nbytes)
    with session.clock.stage("select"):
        plan = _given(session, request, budget)
        if plan is not None:
            return plan
        selector = request.selector or Knapsack()
        if not isinstance(selector, Knapsack):
            raise InfeasibleBudget("a size is for the knapsack, which chooses types, too; leave --selector out")
        return sized_plan(session, budget, selector, replace(request.target, dtype="mixed"))


def _by_drop(session: Session, request: Request, benchmark: Benchmark | None) -> Plan:
    assert benchmark is not None and request.max_drop is not None
    search = Search(
        session=session,
        benchmark=benchmark,
        selector=request.selector,
        refit=request.refit,
        target=request.target,
        permute=request.beside is None,
    )
    with session.clock.stage("select"):
        return search.plan(request.max_drop)


STRATEGIES: Mapping[PlanSource, Strategy] = {"share": _by_share, "time": _by_time, "size": _by_size, "drop": _by_drop}


def _budget(request: Request) -> Budget:
    assert request.budget is not None
    return request.budget


def _given(session: Session, request: Request, budget: Budget | None) -> Plan | None:
    """The plan that is given, held against a budget; None if none is."""
    return None if request.plan is None else read_plan(Path(request.plan).expanduser(), session.analysis, budget)
