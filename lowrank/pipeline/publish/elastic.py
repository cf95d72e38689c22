"""Several sizes of one model that share their numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from lowrank.artifacts import staged
from lowrank.artifacts.lock import holding
from lowrank.backends import Backend
from lowrank.core.plan import Plan
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.structures import structures
from lowrank.core.structures.base import Option, Replacement
from lowrank.core.truncation.factors import Factors
from lowrank.edge.graph_file import make_graph
from lowrank.edge.target import Target
from lowrank.errors import ExportError, LowRankError
from lowrank.parallel import one_thread_each
from lowrank.pipeline.analyzing import with_analysis
from lowrank.pipeline.plans import factorize, select
from lowrank.pipeline.session import WorkOptions, open_session

NESTED = tuple(structure.name for structure in structures() if structure.is_nested)
"""The structures whose factors of a smaller rank are part of those of a larger one."""
DATA_FILE = "model_elastic.onnx.data"
"""Not the name that a graph by itself has its numbers under: both can be in one folder."""
EARLIER = re.compile(r"model_[0-9.e-]+\.onnx")


def name_of(keep: float) -> str:
    """The file of a keep ratio."""
    return f"model_{keep:g}.onnx"


@one_thread_each()
@holding("output")
def export_elastic(
    model: object,
    keeps: Sequence[float],
    output: str | Path,
    *,
    target: Target | None = None,
    opset: int | None = None,
    **options: Unpack[WorkOptions],
) -> dict[float, Path]:
    """A graph for each keep ratio, `output/model_0.3.onnx` and so on, over one `output/model_elastic.onnx.data`.

    All weights are held as two factors, which are nested; they are not refitted, as that would be for one size. Each
    graph gives bit for bit what the same ranks in a file of their own would, and is checked against torch.

    Args:
        model: a path or a live module.
        keeps: keep ratios.
        output: the folder.
        target: what the graphs are for.
        opset: the operator set.
        options: `settings`, `opening`, `execution` and `track`, as for `analyze`.

    Raises:
        ExportError: if a graph cannot be written, or does not agree with torch.
        InfeasibleBudget: if a keep ratio cannot be met.

    Example:
        lowrank.export_elastic("my-model", [0.2, 0.3, 0.5], "elastic")
    """
    from lowrank.edge.elastic import share, store_by_rank
    from lowrank.evaluate.parity import check_parity

    target = target or Target()
    target.check()
    if target.is_rounded:
        raise ExportError("rounded factors are not nested; leave --quantize out, or export one size")
    keeps = sorted(set(keeps))
    if not keeps:
        raise LowRankError("no sizes are named; give keep ratios such as 0.2,0.3,0.5")
    folder = Path(output).expanduser()

    def check(dense: Backend) -> None:
        if isinstance(dense.signature, str):
            raise ExportError(f"{model} cannot be exported: {dense.signature}")

    session = open_session(model, folder, check=check, **options)
    # Without a folder the analysis is neither written nor journaled.
    session = with_analysis(replace(session, run=None))
    backend, track = session.dense, session.track
    plans = {keep: select(session.analysis, keep, Knapsack(structures=NESTED)) for keep in keeps}
    largest = factorize(backend, session.analysis, _largest(list(plans.values())), track)
    names = {keep: name_of(keep) for keep in keeps}
    # Earlier sizes read numbers that are replaced.
    earlier = [path.name for path in folder.glob("model_*.onnx") if EARLIER.fullmatch(path.name)]
    with staged(folder, owned=(*earlier, *names.values(), DATA_FILE)) as stage:
        for keep, plan in track(list(plans.items()), "writing ONNX", len(plans)):
            small = backend.rewrite(_cut(largest, plan))
            path = stage / names[keep]
            make_graph(small, path, target, opset=opset)
            store_by_rank(path)
            check_parity(small, path)
        share([stage / name for name in names.values()], stage / DATA_FILE)
    return {keep: folder / name for keep, name in names.items()}


def _largest(plans: Sequence[Plan]) -> Plan:
    """Of each weight that any plan factors the highest rank that one does."""
    best: dict[str, Option] = {}
    for option in (o for plan in plans for o in plan.options if o.structure in NESTED):
        if option.group not in best or option.rank > best[option.group].rank:
            best[option.group] = option
    return replace(plans[0], options=tuple(best.values()))


def _cut(largest: Mapping[str, Replacement], plan: Plan) -> dict[str, Replacement]:
    """The replacements of a plan, as parts of larger ones."""
    layers: dict[str, Replacement] = {}
    for option in plan.options:
        if option.structure in NESTED:
            # A group of two factors is one weight, and has its name.
            whole, rank = largest[option.group], option.rank
            assert isinstance(whole.factors, Factors)
            factors = Factors(whole.factors.left[..., :rank], whole.factors.right[..., :rank, :])
            layers[option.group] = replace(whole, factors=factors)
    return layers
