"""A budget of quality: the smallest keep ratio whose measured drop on tasks is within a limit."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from lowrank.backends import Backend
from lowrank.backends.inputs import Signature
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan, stored_weights
from lowrank.core.selection.selector import Selector
from lowrank.edge.graph_file import make_graph
from lowrank.edge.target import Target
from lowrank.errors import ExportError, InfeasibleBudget
from lowrank.evaluate.graph import FileModel
from lowrank.evaluate.tasks.benchmark import Benchmark
from lowrank.pipeline.plans import compressed_model, select
from lowrank.pipeline.run.write import rounding_feeds
from lowrank.pipeline.session import Session
from lowrank.results.report import ONNX_FILE

STEPS = 100
"""Keep ratios are hundredths."""


def check_drop(max_drop: float | None) -> None:
    """Check that a largest drop is finite and not negative.

    Raises:
        InfeasibleBudget: if it is not.
    """
    if max_drop is not None and not (math.isfinite(max_drop) and max_drop >= 0):
        raise InfeasibleBudget(f"a drop of {max_drop:g} is no limit; give what a task's metric may lose, such as 0.01")


@dataclass(frozen=True, kw_only=True)
class Search:
    """What compressing does, for keep ratios on trial."""

    session: Session
    benchmark: Benchmark
    selector: Selector | None
    refit: bool
    target: Target
    permute: bool
    """Whether channels may change their order: not under an adapter that is kept."""
    tried: dict[int, str] = field(default_factory=dict[int, str])
    """For each keep ratio, what came of it."""

    def plan(self, max_drop: float) -> Plan:
        """The plan of the smallest keep ratio that loses at most so much, found by bisection.

        Between the two ends a metric of finitely many samples does not fall evenly: so this is a keep ratio that is
        within the limit beside one that is not, and not for certain the smallest of all. The one that is found is
        measured on the file that it becomes, too, and raised if that loses more.

        Raises:
            InfeasibleBudget: if there is none.
        """
        low, high = 0, STEPS
        best: Plan | None = None
        halvings = math.ceil(math.log2(STEPS))
        for _ in self.session.track(range(halvings), "searching the keep ratio", halvings):
            if high - low <= 1:
                continue
            middle = (low + high) // 2
            plan = self._within(middle, max_drop, written=self.target.is_rounded)
            if plan is None:
                low = middle
            else:
                best, high = plan, middle
        if self.target.is_rounded and best is not None:
            return self._with_note(best)
        step = 1
        while high <= STEPS:
            plan = self._within(high, max_drop, written=True)
            if plan is not None:
                return self._with_note(plan)
            high, step = high + step, 2 * step
        raise InfeasibleBudget(
            f"no keep ratio was found whose drop is at most {max_drop:g}: {self._tried}; allow more, give calibration "
            "text like that of the task with --calib, or leave --quantize out"
        )

    @property
    def _tried(self) -> str:
        return "; ".join(f"{keep / STEPS:g}: {outcome}" for keep, outcome in sorted(self.tried.items()))

    def _with_note(self, plan: Plan) -> Plan:
        note = f"keep ratios that were tried, and the largest drop of a task: {self._tried}"
        return replace(plan, notes=(*plan.notes, note))

    def _within(self, keep: int, max_drop: float, written: bool) -> Plan | None:
        """The plan of a keep ratio in hundredths; None if it loses too much, or there is none."""
        try:
            plan = select(self.session.analysis, Budget.params(keep / STEPS), self.selector)
        except InfeasibleBudget:
            self.tried[keep] = "too few parameters"
            return None
        small = compressed_model(self.session.on_trial, plan, refit=self.refit, permute=self.permute)
        drop = self._drop_of_file(small, plan) if written else self.benchmark.drop(small)
        self.tried[keep] = f"{drop:.4f}"
        return plan if drop <= max_drop else None

    def _drop_of_file(self, small: Backend, plan: Plan) -> float:
        signature = small.signature
        assert isinstance(signature, Signature)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ONNX_FILE
            try:
                feeds = rounding_feeds(self.session.calibration)
                make_graph(small, path, self.target, feeds, stored_weights(plan, self.session.analysis))
                return self.benchmark.drop(FileModel(path, signature))
            except ExportError:
                # Told when the result is written; the model is then all there is.
                return self.benchmark.drop(small)
