"""What a low-rank linear map in place of attention, of a feed-forward layer or of a block loses, against what `lowrank`
does at the same cost.

    python tools/bench_blocks.py MODEL --calib FILE [--column sentence1,sentence2] [--arch module:factory]

MODEL is anything that `lowrank compress` reads and torch runs; FILE is what it would be calibrated on. Maps are fitted
to what the dense model reads and gives there (least squares with a ridge, of a given rank), on the same fold as all
else. The ridge is chosen on the held-out fold, and errors are those of the report fold, which nothing was fitted to.
One part is changed at a time, all others are dense; the summary has medians. `bench_block_plans.py` looks at whole
models.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from bench_methods import measured
from measured import Cell, Table, publish
from published import block_of, targeted

import lowrank
from lowrank.backends import Opening, open_model
from lowrank.backends.inputs import spread
from lowrank.backends.torch.hooks import first_input, removed_after
from lowrank.backends.torch.inputs import call, mask_of, token_rows
from lowrank.calibrate.data import load_calibration
from lowrank.calibrate.sensitivity import changes_of, reference_of
from lowrank.core.analysis import Analysis
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.plan import Plan
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.pivoted import pivoted_cost
from lowrank.core.truncation.refit import Joint, refitted
from lowrank.core.weight import Weight
from lowrank.evaluate.fidelity import Judge
from lowrank.pipeline.plans import factorize

COSTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Shares of a part's numbers that are left of it."""
TOKENS = 4096
"""Of the report fold, at most."""
CHANNELS = ("neurons", "product", "rotary")
OFFERED: Mapping[str, tuple[str, ...] | None] = {
    "lowrank": None,
    "fewer channels": CHANNELS,
    "factors": ("two_factor", "pivoted", "shared"),
}
"""What is on offer to the knapsack for one part."""
COLUMNS = {"model": "", "part": "", "kind": "", "left": "g", "method": "", "numbers": ".3f", "multiply-adds": ".3f"}
COLUMNS |= {"error": ".4f", "after its mean": ".4f", "loss": "figure", "fidelity": ".4f"}


@dataclass(frozen=True)
class Part:
    """Attention or a feed-forward layer with what its layers are called, or a whole block of both."""

    name: str
    kind: str
    weights: tuple[str, ...]
    first: str
    """The path of the module that reads first."""
    last: str
    """That of the module that gives what is added to the stream; of a block, the block."""

    @property
    def is_block(self) -> bool:
        """Whether what it gives is the stream, to which nothing is added any more."""
        return self.kind == "block"


def parts_of(weights: Sequence[Weight]) -> list[Part]:
    """The halves of every block, and the blocks, from the names of the weights, which are in the order of the model."""
    halves: dict[tuple[int, str], list[Weight]] = defaultdict(list)
    for weight in weights:
        halves[block_of(weight.name), "attention" if "att" in weight.name else "feed-forward"].append(weight)
    parts = [
        Part(f"{kind} {block}", kind, tuple(w.name for w in ws), ws[0].layers[0].name, ws[-1].layers[0].name)
        for (block, kind), ws in halves.items()
    ]
    for block in dict.fromkeys(block for block, _ in halves):
        own = [w for (at, _), ws in halves.items() if at == block for w in ws]
        steps = own[0].name.split(".")
        path = ".".join(steps[: steps.index(str(block)) + 1])
        parts.append(Part(f"block {block}", "block", tuple(w.name for w in own), path, path))
    return parts


class Span:
    """Sees what enters and leaves a part; with a map, that is what leaves it instead. Copies see for themselves."""

    def __init__(self, part: Part) -> None:
        self.is_block = part.is_block
        self.map: tuple[Tensor, Tensor] | None = None
        self.read, self.given = torch.zeros(0), torch.zeros(0)

    def enter(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Before the first module."""
        self.read = first_input(args, kwargs).detach()

    def leave(self, _: nn.Module, _args: Any, output: Any) -> Any:
        """After the last one."""
        whole = output[0] if isinstance(output, tuple) else output
        self.given = whole - self.read if self.is_block else whole
        if self.map is None:
            return None
        matrix, bias = self.map
        self.given = self.read @ matrix.T + bias
        made = self.read + self.given if self.is_block else self.given
        return (made, *output[1:]) if isinstance(output, tuple) else made


@contextmanager
def spans(module: nn.Module, parts: Sequence[Part]) -> Iterator[list[Span]]:
    """One on each part, for as long as the block lasts."""
    found, handles = [Span(part) for part in parts], []
    for part, span in zip(parts, found, strict=True):
        first, last = module.get_submodule(part.first), module.get_submodule(part.last)
        handles.append(first.register_forward_pre_hook(span.enter, with_kwargs=True))
        handles.append(last.register_forward_hook(span.leave))
    with removed_after(handles):
        yield found


def joint_moments(backend: Any, parts: Sequence[Part], feeds: Sequence[Any], small: Any = None) -> list[Joint]:
    """Of what each part gives in the dense model and reads there, or in a smaller one."""
    sums: list[Joint | None] = [None] * len(parts)
    with spans(backend.module, parts) as seen, spans((small or backend).module, parts) as other, torch.no_grad():
        for feed in feeds:
            for model in (backend, *([small] if small else [])):
                call(backend.signature, model.module, feed)
            for i, spanned in enumerate(zip(other, seen, strict=True)):
                read, given = spanned[0].read, spanned[1].given
                x, y = (token_rows(t, mask_of(feed)).double().numpy() for t in (read, given))
                found = Joint(x.T @ x, y.T @ x, x.sum(0), y.sum(0), float(np.vdot(y, y)), len(x))
                sums[i] = found if (before := sums[i]) is None else before + found
    return [found for found in sums if found is not None]


def rank_within(numbers: float, rows: int, cols: int) -> int:
    """The largest rank whose pivoted factors have so many numbers."""
    ranks = np.arange(min(rows, cols) + 1)
    return int(np.flatnonzero(pivoted_cost(rows, cols, ranks) <= numbers)[-1])


def best_map(fit: Joint, judge: Joint, rank: int) -> tuple[Matrix, Matrix]:
    """The matrix of a rank and the bias that say best what a part gives from what it reads."""
    rows, cols = fit.cross.shape
    none = Replacement("two_factor", Factors(np.zeros((rows, rank)), np.zeros((rank, cols))), np.zeros(rows))
    fitted = refitted(none, np.zeros((rows, cols)), np.zeros(rows), fit, judge) if rank else None
    if fitted is None or fitted.bias is None:
        return np.zeros((rows, cols)), fit.output_total / max(fit.tokens, 1)
    assert isinstance(fitted.factors, Factors)
    return np.asarray(fitted.factors.product(), np.float64), fitted.bias


def as_tensors(numbers: tuple[Matrix, Matrix]) -> tuple[Tensor, Tensor]:
    """A matrix and a bias, for a span."""
    return torch.from_numpy(numbers[0]).float(), torch.from_numpy(numbers[1]).float()


@dataclass(frozen=True)
class Found:
    """What a change of one part does to what that part gives, and to the model's output."""

    error: float
    after_mean: float
    loss: float
    fidelity: float


@dataclass
class Bench:
    """A model with its analysis, and its own outputs on the report fold."""

    name: str
    calibration: Any
    analysis: Analysis
    parts: list[Part]
    maps: dict[tuple[str, int], tuple[Matrix, Matrix]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backend: Any = self.calibration.backend
        self.feeds = list(spread(self.calibration.report, TOKENS))
        self.judge = Judge(self.backend, self.feeds)
        self.given: list[list[Tensor]] = []
        with spans(self.backend.module, self.parts) as seen:
            outputs = list(self.outputs(self.backend.module, lambda: self.given.append([s.given for s in seen])))
        self.reference = reference_of(self.backend, self.feeds, outputs)
        self.judge.against(self.backend)
        self.fit, self.heldout = (
            joint_moments(self.backend, self.parts, fold)
            for fold in (self.calibration.fit, self.calibration.heldout or self.calibration.fit)
        )

    def outputs(self, module: nn.Module, after: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """Of a module on the report fold, batch by batch."""
        for feed in self.feeds:
            with torch.no_grad():
                made = call(self.backend.signature, module, feed)
            after()
            yield {name: tensor.numpy() for name, tensor in made.items()}

    def params(self, part: Part) -> int:
        """Its numbers."""
        return sum(self.analysis[name].weight.params for name in part.weights)

    def products(self, part: Part, options: Sequence[Any] | None = None) -> float:
        """Multiply-adds of one token between queries, keys and values, at the mean length of the report fold."""
        names = [name for name in part.weights if "att" in name]
        if not names:
            return 0.0
        with spans(self.backend.module, [part]) as (span,), torch.no_grad():
            call(self.backend.signature, self.backend.module, self.feeds[len(self.feeds) // 2])
        width, share = self.analysis[names[-1]].weight.cols, {"query_key": 1.0, "value_output": 1.0}
        for option in options or ():
            record = self.analysis.coupling(self.analysis.groups[option.group], option.structure)
            coupling = None if record is None else record.group.coupling
            if record is not None and coupling is not None and option.structure in ("product", "rotary"):
                kind = "value_output" if coupling.kind == "value_output" else "query_key"
                share[kind] = option.rank / int(record.ranks[-1])
        return float(span.read.shape[-2]) * width * sum(share.values())

    def map_of(self, part: Part, rank: int) -> tuple[Matrix, Matrix]:
        """The best one of a rank; of rank zero what the part gives on average."""
        at = self.parts.index(part)
        if (part.name, rank) not in self.maps:
            self.maps[part.name, rank] = best_map(self.fit[at], self.heldout[at], rank)
        return self.maps[part.name, rank]

    def plan_of(self, weights: Sequence[str], limit: float, structures: tuple[str, ...] | None = None) -> Plan | None:
        """The best plan for some weights by themselves, within so many numbers; None if there is none."""
        names = set(weights)
        own = replace(
            self.analysis,
            weights=tuple(r for r in self.analysis.weights if r.weight.name in names),
            couplings=tuple(c for c in self.analysis.couplings if names.issuperset(c.group.weights)),
        )
        try:
            return lowrank.select(own, limit / own.dense_params, lowrank.Knapsack(structures=structures))
        except lowrank.LowRankError:
            return None

    def neurons_of(self, part: Part, limit: float) -> Plan | None:
        """As many neurons as have so many numbers, whatever is predicted of so few; None for other parts."""
        for record in self.analysis.couplings:
            if record.structure == "neurons" and set(record.group.weights) == set(part.weights):
                rank = int(limit / self.params(part) * int(record.ranks[-1]))
                option = structure_named("neurons").at(record.group, self.analysis, rank)
                return Plan("", None, {}, (option,), self.params(part)) if rank else None
        return None

    def tried(self, part: Part, changes: Mapping[str, Any], numbers: Any = None) -> Found:
        """The model with other numbers in a part, or a map in its place."""
        at, lost, whole = self.parts.index(part), 0.0, 0.0
        batches, totals = iter(self.given), list[tuple[Tensor, Tensor, int]]()

        with ExitStack() as stack:
            (span,) = stack.enter_context(spans(self.backend.module, [part]))
            span.map = None if numbers is None else as_tensors(numbers)
            stack.enter_context(self.backend.swapped(changes))

            def after() -> None:
                nonlocal lost, whole
                y = next(batches)[at].double().flatten(0, -2)
                rest = y - span.given.double().flatten(0, -2)
                lost, whole = lost + float(rest.square().sum()), whole + float(y.square().sum())
                totals.append((rest.sum(0), y.sum(0), len(y)))

            outputs = list(self.outputs(self.backend.module, after))
        count = sum(n for *_, n in totals)
        rest, sums = torch.stack([t[0] for t in totals]).sum(0), torch.stack([t[1] for t in totals]).sum(0)
        after_mean = (lost - float(rest.square().sum()) / count) / (whole - float(sums.square().sum()) / count)
        return Found(lost / whole, after_mean, *self.scores(outputs))

    def scores(self, outputs: Sequence[Any]) -> tuple[float, float]:
        """The loss, and the fidelity, of a model's outputs."""
        likeness = self.judge.against(Said(outputs))
        return self.reference.loss(outputs), min(each.fidelity for each in likeness)


@dataclass(frozen=True)
class Said:
    """Outputs that were made before, as a model."""

    made: Sequence[Any]

    def outputs_of(self, feeds: Any) -> Iterator[Any]:
        """All of them."""
        return iter(self.made)

    def outputs(self, feed: Any) -> Any:
        """Of no use here."""
        raise NotImplementedError

    run = outputs


def rows_of(bench: Bench, part: Part) -> Iterator[list[Cell]]:
    """The rows of one part: nothing, its mean, and at each cost a map and each choice of the knapsack."""
    params, products = bench.params(part), bench.products(part)
    rows, cols = bench.fit[bench.parts.index(part)].cross.shape

    def row(left: float, method: str, numbers: float, multiplied: float, found: Found) -> list[Cell]:
        share = (numbers + multiplied) / (params + products)
        return [bench.name, part.name, part.kind, left, method, numbers / params, share, *astuple(found)]

    nothing = np.zeros((rows, cols)), np.zeros(rows)
    yield row(0, "nothing", 0, 0, bench.tried(part, {}, nothing))
    yield row(0, "mean", rows, 0, bench.tried(part, {}, bench.map_of(part, 0)))
    for left in COSTS:
        rank = rank_within(left * params, rows, cols)
        yield row(left, "map", pivoted_cost(rows, cols, rank), 0, bench.tried(part, {}, bench.map_of(part, rank)))
        for method, structures in OFFERED.items():
            neurons = bench.neurons_of(part, left * params) if structures == CHANNELS else None
            plan = neurons or bench.plan_of(part.weights, left * params, structures)
            if plan is None or (part.is_block and structures):
                continue
            changes = changes_of(factorize(bench.backend, bench.analysis, plan), bench.analysis)
            yield row(left, method, plan.cost, bench.products(part, plan.options), bench.tried(part, changes))


def summary(rows: Sequence[Sequence[Cell]]) -> Table:
    """By kind and cost: medians of errors and of losses, and where the map has less of them than all others."""
    columns = {"kind": "", "left": "g", "parts": ".0f"}
    for what in ("error", "loss"):
        columns |= {f"{what}: {m}": ".4f" for m in ("map", *OFFERED)} | {f"map has less {what}": ".0f"}
    found: dict[tuple[Cell, Cell], dict[Cell, dict[Cell, Sequence[Cell]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row[3]:
            found[row[2], row[3]][row[4]][row[1]] = row
    table: list[list[Cell]] = []
    for (kind, left), methods in found.items():
        cells: list[Cell] = [kind, left, len(methods["map"])]
        for at in (7, 9):
            values: dict[Cell, dict[Cell, float]] = {
                method: {name: float(row[at] or 0.0) for name, row in by_part.items()}
                for method, by_part in methods.items()
            }
            cells += [median(values[m].values()) if m in values else None for m in ("map", *OFFERED)]
            others = [each for method, each in values.items() if method != "map"]
            less = [all(value < other.get(name, np.inf) for other in others) for name, value in values["map"].items()]
            cells.append(sum(less))
        table.append(cells)
    return Table(columns, table)


def options(text: str | None) -> argparse.ArgumentParser:
    """Those of a bench of one model."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--column", help="of text")
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--arch", help="package.module:factory")
    parser.add_argument("--name", help="of the model in the tables")
    parser.add_argument("--output", type=Path, default=Path("bench"))
    return parser


def opened(args: argparse.Namespace) -> tuple[str, Any]:
    """The name of the model, and its calibration data."""
    backend = open_model(args.model, Opening(arch=args.arch))
    return args.name or Path(args.model).name, load_calibration(backend, args.calib, args.column, args.samples)


def bench_of(args: argparse.Namespace) -> Bench:
    """The model, analysed as `lowrank` does."""
    name, calibration = opened(args)
    return Bench(name, calibration, measured(calibration), parts_of(targeted(calibration.backend)))


def main() -> None:
    args = options(__doc__).parse_args()
    bench = bench_of(args)
    rows: list[list[Cell]] = []
    for part in bench.parts:
        rows += rows_of(bench, part)
        publish(Table(COLUMNS, rows), args.output, f"blocks-{bench.name}")
        print(f"{part.name}: measured", file=sys.stderr, flush=True)
    print(publish(summary(rows), args.output, f"blocks-{bench.name}-summary"))


if __name__ == "__main__":
    main()
