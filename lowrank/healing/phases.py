"""The phases of healing: block by block, a search for the learning rate, and the whole model to the end. Refinement is
the first of them alone."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from torch import Tensor, nn

from lowrank.errors import HealingError
from lowrank.healing.adapter import Adapter
from lowrank.healing.blocks import BlockFit
from lowrank.healing.checkpoint import Checkpoint, Phase, Progress
from lowrank.healing.clock import Span, WorkLimit
from lowrank.healing.distill import Distillation
from lowrank.healing.faults import first_nonfinite, is_memory
from lowrank.healing.grids import Grids
from lowrank.healing.optimizer import Diverged, Optimizer, descend, rates, restore_, snapshot
from lowrank.healing.straight_through import RoundedOptimizer

BLOCKS, TRIAL = 0.1, 0.05
"""Shares of the work: of all blocks together, and of one trial of a learning rate."""
RAISED, HIGHEST = 4, 0.008
"""Times the best rate of the trials, in the main phase, and up to which rate. The best rate of a short training is too
low for a long one: what a high one gains shows only once it has come down again. Beyond that rate more is lost than
gained, unless the trials themselves found it better. Where no trial gains anything it stays as it is."""
FAR = 3
"""At so many times the loss of before healing the main phase begins again, at a rate that is `RAISED` times lower: a
weight that is applied at many depths moves the output many times."""
JUDGED = 12
"""How often the held-out loss is measured in the main phase."""
PATIENCE = 6
"""The main phase ends when so many measurements in a row are no better than an earlier one of its own."""


@dataclass(frozen=True, kw_only=True)
class Healed:
    """The result of a healing, for the report."""

    before: float
    after: float
    """Held-out loss of the output, at the start and at the end."""
    rate: float | None
    steps: int
    """Of the whole model, after the trials."""
    batch: int
    """Samples that a thread had in memory at a time, at most."""
    curve: list[tuple[float, float]]
    """Minutes (or steps) and held-out loss."""
    problems: list[str] = field(default_factory=list[str])

    @property
    def kept(self) -> bool:
        """Whether it is better than before."""
        return self.after < self.before


class Healing:
    """One run: block by block, then a search for the learning rate, then the whole model to the end of the work.

    Args:
        task: the models and their data.
        target: the module that gets the best numbers at the end, in the dtype that it is stored in.
        work: how much is allowed.
        loss: the held-out loss of what the parameters hold; an adapter may have begun as something.
        seed: of the order of the batches.
        checkpoint: where the healing is kept when it is interrupted.
        adapter: that is trained; None if the factors are.
        grids: of the parameters that are trained in few bits.
    """

    def __init__(
        self,
        task: Distillation,
        target: nn.Module,
        work: WorkLimit,
        *,
        loss: float,
        seed: int,
        checkpoint: Checkpoint,
        adapter: Adapter | None = None,
        grids: Grids | None = None,
    ) -> None:
        self.task, self.target, self.adapter, self.grids = task, target, adapter, grids
        self.seed, self.checkpoint = seed, checkpoint
        self.problems: list[str] = []
        self.resumed: dict[str, dict[str, Tensor]] = {}
        if checkpoint.resume:
            self.progress, self.resumed = checkpoint.read()
            task.weight, task.parts = self.progress.weight, self.progress.parts
            restore_(task.parameters, self.resumed["now"])
            self.best = dict(self.resumed["best"])
        else:
            before = task.before
            if not math.isfinite(before):
                raise HealingError(
                    "the compressed model's outputs are not finite on the held-out data; compress again, and look at "
                    "what `lowrank evaluate` says"
                )
            self.progress = Progress(checkpoint.key, before=before, best=loss, weight=task.weight)
            self.best = snapshot(task.parameters)
        # Getting ready has taken some of the time.
        done = self.progress.done + (0.0 if work.by_steps else work.done)
        self.work = WorkLimit(work.total, int(work.total) if work.by_steps else None, done, task.workers)

    def run(self) -> Iterator[float]:
        """Do all phases; after every step, gives the share of the work that is done."""
        progress = self.progress
        try:
            if progress.phase == "blocks":
                yield from self._blocks(BLOCKS)
                self._enter("search")
            if progress.phase == "search":
                yield from self._search()
                self._begin(self._first_rate())
            yield from self._main()
        except Diverged as error:
            where = first_nonfinite(self.task.student, self.task.fit.feeds, str(error))
            self.problems.append(f"healing stopped: {where}; what was best until then is kept")
        self.keep_best()

    def refine(self) -> Iterator[float]:
        """Spend all of the work on the first phase: after every step, the share that is done.

        Yields nothing if the model cannot be run from the middle.
        """
        yield from self._blocks(1.0)
        self.keep_best()

    def status(self) -> str:
        """How far it has come, in words."""
        best, before = self.progress.best, self.progress.before
        return f"healing: held-out loss {best:.4g}, {best / before:.3f} of what it was" if before else "healing"

    def healed(self) -> Healed:
        """The result."""
        unit = 1.0 if self.work.by_steps else 60.0
        return Healed(
            before=self.progress.before,
            after=self.progress.best,
            rate=self.progress.rate or None,
            steps=self.progress.steps,
            batch=-(-max(map(self.task.rows, range(len(self.task.fit.feeds)))) // self.task.parts),
            curve=[(work / unit, loss) for work, loss in self.progress.curve],
            problems=self.problems,
        )

    def keep_best(self) -> None:
        """Give the target the best numbers."""
        places = dict(self.target.named_parameters())
        restore_({name: places[name] for name in self.best}, self.best)

    def _blocks(self, share: float) -> Iterator[float]:
        """Fit one block after the other with a share of the work."""
        task, progress = self.task, self.progress
        try:
            fitting = BlockFit(task, self.work, share * self.work.total, self.seed, self.grids)
            for block in range(progress.blocks, len(fitting.paths)):
                for _ in fitting.fit(block):
                    yield self._share
                progress.blocks = block + 1
                self._save()
        except (RuntimeError, MemoryError) as error:
            # The whole model is trained on as little at a time as memory holds, and can do without this.
            if not is_memory(error):
                raise
        if progress.blocks and not self._judge():
            # Each block got better by itself, but not all of them together.
            restore_(task.parameters, self.best)

    def _search(self) -> Iterator[float]:
        task, start, reached = self.task, snapshot(self.task.parameters), dict[float, dict[str, Tensor]]()
        asked, broken = rates(), ""
        rate, tried = next(asked), dict[float, float]()
        with suppress(StopIteration):
            while True:
                restore_(task.parameters, start)
                optimizer = self._optimizer(rate)
                part = Span(self.work, min(TRIAL * self.work.total, self.work.total - self.work.done))
                if tried and part.length <= 0:
                    break
                try:
                    for _ in descend(task.backward, task.steps(self.seed), optimizer, part):
                        yield self._share
                    tried[rate] = task.judge()
                    reached[rate] = snapshot(task.parameters)
                except Diverged as error:
                    tried[rate], broken = math.inf, first_nonfinite(task.student, task.fit.feeds, str(error))
                rate = asked.send(tried[rate])
        best = min(tried, key=lambda rate: tried[rate])
        self.progress.tried = {repr(rate): loss for rate, loss in tried.items() if math.isfinite(loss)}
        if not self.progress.tried:
            restore_(task.parameters, start)
            raise Diverged(f"{broken}, at each learning rate that was tried")
        restore_(task.parameters, reached[best])
        self._judge(tried[best])

    def _optimizer(self, rate: float) -> Optimizer:
        parameters, smallest = self.task.parameters, self.task.smallest
        if self.grids:
            return RoundedOptimizer(parameters, rate, smallest, self.grids)
        return Optimizer(parameters, rate, smallest)

    def _first_rate(self) -> float:
        """Of the main phase, from what the trials came to."""
        progress = self.progress
        rate = min(progress.tried, key=lambda rate: progress.tried[rate])
        best = float(rate)
        return max(best, min(RAISED * best, HIGHEST)) if progress.tried[rate] < progress.before else best

    def _begin(self, rate: float) -> None:
        """Begin the main phase with what is best."""
        restore_(self.task.parameters, self.best)
        self.progress.rate, self.progress.begun, self.progress.judged = rate, self.work.done, 0
        self.progress.first = self.progress.steps
        self._enter("main")

    def _main(self) -> Iterator[float]:
        """Train to the end of the work, or until nothing gets better."""
        while not (yield from self._trained()):
            self._begin(self.progress.rate / RAISED)

    def _trained(self) -> Generator[float, None, bool]:
        """The main phase at one rate; whether it went well."""
        task, progress = self.task, self.progress
        part = Span(self.work, self.work.total - progress.begun, progress.begun)
        optimizer = self._optimizer(progress.rate)
        if "mean" in self.resumed:
            optimizer.restore(self.resumed, progress.steps - progress.first, progress.usual)
            self.resumed = {}
        try:
            # It may have been interrupted in a judgement.
            if int(part.share * JUDGED) > progress.judged and not self._judge_main(part, optimizer):
                return False
            for share in descend(task.backward, task.steps(self.seed + 1, progress.steps), optimizer, part):
                progress.steps += 1
                if share * JUDGED >= progress.judged + 1 and not self._judge_main(part, optimizer):
                    return False
                yield self._share
                if self._judged_in_vain() >= PATIENCE:
                    break
        except Diverged:
            if progress.rate <= min(map(float, progress.tried)):
                raise
            return False
        except (KeyboardInterrupt, GeneratorExit):
            self._save(optimizer)
            raise
        return True

    def _judge_main(self, part: Span, optimizer: Optimizer) -> bool:
        """Judge the student as it is; whether it is worth going on with."""
        share, loss = part.share, self.task.judge()
        self._judge(loss)
        self.progress.judged = int(share * JUDGED)
        self._save(optimizer)
        return loss <= FAR * self.progress.before

    def _judge(self, loss: float | None = None) -> bool:
        """Judge the student as it is, and keep it if it is the best so far."""
        loss = self.task.judge() if loss is None else loss
        if math.isfinite(loss):
            self.progress.curve.append((self.work.done, loss))
        if loss >= self.progress.best:
            return False
        self.progress.best, self.best = loss, snapshot(self.task.parameters)
        return True

    def _judged_in_vain(self) -> int:
        """How many judgements of the main phase in a row have found nothing better than it had."""
        losses = [loss for work, loss in self.progress.curve if work > self.progress.begun]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    @property
    def _share(self) -> float:
        return min(self.work.done / self.work.total, 1.0)

    def _enter(self, phase: Phase) -> None:
        self.progress.phase = phase
        self._save()

    def _save(self, optimizer: Optimizer | None = None) -> None:
        """Write everything that it takes to go on to the checkpoint."""
        progress, task = self.progress, self.task
        # All processes look at the clock together, and one writes.
        progress.done, progress.parts = self.work.done, task.parts
        if self.checkpoint.path is None or not task.workers.is_first:
            return
        groups = {"now": snapshot(task.parameters), "best": self.best}
        if optimizer is not None:
            progress.usual = optimizer.usual
            groups |= optimizer.moments()
        self.checkpoint.write(progress, groups)
