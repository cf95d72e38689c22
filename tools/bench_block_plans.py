"""Whole models in which linear maps stand for some of the parts, against the plan of `lowrank` for the same budget.

    python tools/bench_block_plans.py MODEL --calib FILE [--column sentence1,sentence2] [--arch module:factory]

MODEL and FILE are those of `bench_blocks.py`. One half of a block after the other gets a map, with the rank and the
place that are predicted to gain most: what the map loses by itself was measured as the sensitivities are, and the
knapsack spends what is saved on all other weights. The losses are those of the report fold, of factors as they are cut
and after the refit; maps are fitted once more to what they read in the refitted model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from bench_blocks import (
    COSTS,
    Bench,
    Part,
    Span,
    as_tensors,
    bench_of,
    best_map,
    joint_moments,
    options,
    rank_within,
    spans,
)
from measured import Cell, Table, publish

from lowrank.backends.torch.inputs import call
from lowrank.calibrate.refit import sequential_refit
from lowrank.calibrate.sensitivity import reference_of, some_batches
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.plan import Plan
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.pivoted import pivoted_cost
from lowrank.core.weight import Group
from lowrank.pipeline.plans import factorize
from lowrank.progress import silent

KEEPS = (0.5, 0.3)
PLANS = {
    "model": "",
    "keep": "g",
    "maps": "",
    "predicted": ".4f",
    "loss": ".4f",
    "fidelity": ".4f",
    "refitted": ".4f",
    "its fidelity": ".4f",
}


def predicted(bench: Bench, plan: Plan, keep: float) -> float:
    """What the knapsack expects a plan to lose."""
    loss, groups = bench.analysis.loss, bench.analysis.groups
    return sum(float(loss(groups[o.group], o.structure, np.array([o.error]), keep)[0]) for o in plan.options)


def losses_of_maps(bench: Bench) -> dict[tuple[str, int], float]:
    """What a map in the place of each half loses, by itself, on the samples that sensitivities are measured on."""
    backend, feeds = bench.backend, some_batches(bench.calibration)

    def outputs() -> list[Any]:
        with torch.no_grad():
            made = [call(backend.signature, backend.module, feed) for feed in feeds]
        return [{name: tensor.numpy() for name, tensor in each.items()} for each in made]

    reference, found = reference_of(backend, feeds, outputs()), {}
    for part in bench.parts:
        rows, cols = bench.fit[bench.parts.index(part)].cross.shape
        ranks = dict.fromkeys(rank_within(left * bench.params(part), rows, cols) for left in COSTS)
        for rank in () if part.is_block else (0, *ranks):
            with spans(backend.module, [part]) as (span,):
                span.map = as_tensors(bench.map_of(part, rank))
                found[part.name, rank] = reference.loss(outputs())
    return found


@dataclass(frozen=True)
class Mixed:
    """A plan for some weights, and maps for the other parts: what it is predicted to lose."""

    plan: Plan
    ranks: Mapping[str, int]
    loss: float


def with_maps(bench: Bench, keep: float, lost: Mapping[tuple[str, int], float], most: int) -> Iterator[Mixed]:
    """Plans for one budget: none of the parts a map, then one more of them at a time, the best by what is predicted."""
    halves = {part.name: part for part in bench.parts if not part.is_block}
    limit = keep * bench.analysis.dense_params

    def mixed(ranks: Mapping[str, int]) -> Mixed | None:
        taken, spent, loss = set[str](), 0, 0.0
        for name, rank in ranks.items():
            part = halves[name]
            rows, cols = bench.fit[bench.parts.index(part)].cross.shape
            taken.update(part.weights)
            spent += pivoted_cost(rows, cols, rank)
            context = bench.analysis._factor(Group(name, part.weights), keep)  # pyright: ignore[reportPrivateUsage]
            loss += lost[name, rank] * context
        rest = [r.weight.name for r in bench.analysis.weights if r.weight.name not in taken]
        plan = bench.plan_of(rest, limit - spent)
        return None if plan is None else Mixed(plan, ranks, loss + predicted(bench, plan, keep))

    best = mixed({})
    while best is not None:
        yield best
        if len(best.ranks) == most:
            return
        more = [mixed({**best.ranks, name: rank}) for name, rank in lost if name not in best.ranks]
        best = min((each for each in more if each is not None), key=lambda each: each.loss, default=None)


class WithMaps:
    """A backend whose compressed models have maps in the place of some parts."""

    def __init__(self, backend: Any, maps: Mapping[Part, tuple[Matrix, Matrix]]) -> None:
        self._backend, self._maps = backend, maps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def rewrite(self, made: Mapping[str, Replacement]) -> Any:
        """The compressed model."""
        small = self._backend.rewrite(made)
        for part, numbers in self._maps.items():
            span = Span(part)
            span.map = as_tensors(numbers)
            small.module.get_submodule(part.first).register_forward_pre_hook(span.enter, with_kwargs=True)
            small.module.get_submodule(part.last).register_forward_hook(span.leave)
        return small


def plan_rows(bench: Bench, keep: float, lost: Mapping[tuple[str, int], float], most: int) -> Iterator[list[Cell]]:
    """One row for each number of maps, with the model's measured losses before and after the refit."""
    parts = {part.name: part for part in bench.parts}
    for mixed in with_maps(bench, keep, lost, most):
        ranks = {parts[name]: rank for name, rank in mixed.ranks.items()}
        maps = {part: bench.map_of(part, rank) for part, rank in ranks.items()}
        made = factorize(bench.backend, bench.analysis, mixed.plan)
        small = WithMaps(bench.backend, maps).rewrite(made)
        cells: list[Cell] = [*bench.scores(list(bench.outputs(small.module)))]
        # Once more with maps that are fitted to what they read in a model that is refitted.
        for again in (False, True) if maps else (False,):
            if again:
                folds = (bench.calibration.fit, bench.calibration.heldout or bench.calibration.fit)
                joint = [joint_moments(bench.backend, list(ranks), fold, small) for fold in folds]
                found = zip(*joint, ranks.items(), strict=True)
                maps = {part: best_map(fit, judge, rank) for fit, judge, (part, rank) in found}
            backend: Any = WithMaps(bench.backend, maps)
            data = replace(bench.calibration, backend=backend)
            fitted = sequential_refit(data, backend.rewrite(made), made, bench.analysis, silent)
            small = backend.rewrite(fitted)
        cells += bench.scores(list(bench.outputs(small.module)))
        named = ", ".join(f"{part.name} by rank {rank}" for part, rank in ranks.items())
        yield [bench.name, keep, named or "none", mixed.loss, *cells]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--keeps", type=float, nargs="+", default=KEEPS)
    parser.add_argument("--most", type=int, default=3, help="maps in one plan")
    args = parser.parse_args()
    bench = bench_of(args)
    lost, rows = losses_of_maps(bench), list[list[Cell]]()
    for keep in args.keeps:
        for row in plan_rows(bench, keep, lost, args.most):
            rows.append(row)
            print(publish(Table(PLANS, rows), args.output, f"blocks-{bench.name}-plans").splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
