"""A budget of quality: the smallest keep ratio whose measured drop on tasks is within a limit."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.backends import Backend
from lowrank.backends.inputs import Signature, spread
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan, stored_weights
from lowrank.core.selection.selector import Selector
from lowrank.core.structures.permute import agree_channel_order
from lowrank.edge.graph_file import fit_file
from lowrank.edge.target import Target
from lowrank.errors import ExportError, InfeasibleBudget
from lowrank.pipeline.plans import factorize, refitted, select
from lowrank.pipeline.run.write import TOKENS
from lowrank.progress import Track, silent
from lowrank.results.report import ONNX_FILE

if TYPE_CHECKING:
    from lowrank.calibrate import Calibration
    from lowrank.evaluate.tasks import Benchmark

STEPS = 100
"""Keep ratios are hundredths."""


def read_benchmark(specs: Sequence[str], dense: Backend, calibration: Calibration | None) -> Benchmark | None:
    """The tasks that some specs name; None if there are none.

    Raises:
        TaskError: if one cannot be read.
    """
    if not specs:
        return None
    from lowrank.evaluate.tasks import Benchmark, read_tasks

    return Benchmark(read_tasks(specs, dense, calibration.report if calibration else None), dense)


def check_drop(max_drop: float | None) -> None:
    """Nothing, if a drop is one.

    Raises:
        InfeasibleBudget: if it is not.
    """
    if max_drop is not None and not (math.isfinite(max_drop) and max_drop >= 0):
        raise InfeasibleBudget(f"a drop of {max_drop:g}: it is what a task's metric may lose, such as 0.01")


@dataclass(frozen=True, kw_only=True)
class Search:
    """What compressing does, for keep ratios on trial."""

    dense: Backend
    analysis: Analysis
    calibration: Calibration | None
    benchmark: Benchmark
    selector: Selector | None
    refit: bool
    target: Target
    free: bool
    """Whether channels may be permuted: not under an adapter that is kept."""
    tried: dict[int, str] = field(default_factory=dict[int, str])
    """For each keep ratio, what came of it."""

    def plan(self, max_drop: float, track: Track = silent) -> Plan:
        """The plan of the smallest keep ratio that loses at most so much, found by bisection.

        Between the two ends a metric of finitely many samples does not fall evenly: so this is a keep ratio that is
        within the limit beside one that is not, and not for certain the smallest of all. The one that is found is
        measured on the file that it becomes, too, and raised if that loses more.

        Raises:
            InfeasibleBudget: if there is none.
        """
        check_drop(max_drop)
        low, high = 0, STEPS
        best: Plan | None = None
        for _ in track(range(math.ceil(math.log2(STEPS))), "searching the keep ratio", math.ceil(math.log2(STEPS))):
            if high - low <= 1:
                continue
            middle = (low + high) // 2
            plan = self._within(middle, max_drop, written=self.target.is_rounded)
            if plan is None:
                low = middle
            else:
                best, high = plan, middle
        if self.target.is_rounded and best is not None:
            return self._told(best)
        step = 1
        while high <= STEPS:
            plan = self._within(high, max_drop, written=True)
            if plan is not None:
                return self._told(plan)
            high, step = high + step, 2 * step
        raise InfeasibleBudget(
            f"no keep ratio was found whose drop is at most {max_drop:g}: {self._tried}; allow more, give calibration "
            "text like that of the task with --calib, or leave --quantize out"
        )

    @property
    def _tried(self) -> str:
        return "; ".join(f"{keep / STEPS:g}: {told}" for keep, told in sorted(self.tried.items()))

    def _told(self, plan: Plan) -> Plan:
        note = f"keep ratios that were tried, and the largest drop of a task: {self._tried}"
        return replace(plan, notes=(*plan.notes, note))

    def _within(self, keep: int, max_drop: float, written: bool) -> Plan | None:
        """The plan of a keep ratio in hundredths; None if it loses too much, or there is none."""
        try:
            plan = select(self.analysis, Budget.params(keep / STEPS), self.selector)
        except InfeasibleBudget:
            self.tried[keep] = "too few parameters"
            return None
        small = self._compressed(plan)
        drop = self._drop_of_file(small, plan) if written else self.benchmark.drop(small)
        self.tried[keep] = f"{drop:.4f}"
        return plan if drop <= max_drop else None

    def _compressed(self, plan: Plan) -> Backend:
        made = factorize(self.dense, self.analysis, plan)
        if self.refit and self.calibration is not None and made:
            made = refitted(self.calibration, made, self.analysis)
        couplings = self.dense.couplings if self.free else ()
        return self.dense.rewrite(agree_channel_order(made, self.dense.weights, couplings, self.dense))

    def _drop_of_file(self, small: Backend, plan: Plan) -> float:
        from lowrank.evaluate.session import FileModel

        signature = small.signature
        assert isinstance(signature, Signature)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ONNX_FILE
            try:
                small.write_onnx(path)
                feeds = spread(self.calibration.fit, TOKENS) if self.calibration is not None else ()
                fit_file(path, self.target, signature, feeds, stored_weights(plan, self.analysis))
                return self.benchmark.drop(FileModel(path, signature.output))
            except ExportError:
                # Told when the result is written; the model is then all there is.
                return self.benchmark.drop(small)
