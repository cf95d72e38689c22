"""A dense graph and its compressed one, run side by side on the same batches in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.folds import JointFolds
from lowrank.backends.inputs import MASK, Feed
from lowrank.backends.onnx.describe import Use
from lowrank.backends.onnx.moments import token_rows, watched
from lowrank.backends.onnx.runtime import Runner
from lowrank.core.linalg.eigen import Vector
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.refit import Joint
from lowrank.core.weight import Weight
from lowrank.parallel import threads


class OnnxPair:
    """Joint moments of products that read one value, in the order of the graph.

    A bias is another node's operand, so none is refitted. The graph is cut off after what is wanted, and made anew for
    each stage with the numbers that have been found until then.

    Args:
        dense: the graph as it was, an `onnx_ir.Model`.
        folder: of its external tensors.
        uses: where the graph applies each weight, by name.
        rewritten: the graph with replacements in the places of weights.
        fit: batches for the moments that choose.
        judge: batches for those that judge.
        jobs: how many batches are run at once.
    """

    def __init__(
        self,
        dense: Any,
        folder: Path,
        uses: Mapping[str, Sequence[Use]],
        rewritten: Callable[[Mapping[str, Replacement]], Any],
        fit: Sequence[Feed],
        judge: Sequence[Feed],
        jobs: int = 1,
    ) -> None:
        self.dense, self.folder, self.uses, self.rewritten = dense, folder, uses, rewritten
        self.feeds, self.fit_count, self.jobs = [*fit, *judge], len(fit), jobs

    def stages(self, weights: Sequence[Weight]) -> list[list[Weight]]:
        """Weights in the order of their nodes, those that read one value together; others than plain products not."""
        uses = {weight.name: use for weight in weights if (use := self._use(weight)) is not None}
        places = {id(node): i for i, node in enumerate(self.dense.graph)}
        by_value: dict[str, list[Weight]] = {}
        for weight in sorted((w for w in weights if w.name in uses), key=lambda w: places[id(uses[w.name].site.node)]):
            by_value.setdefault(uses[weight.name].site.vectors.name, []).append(weight)
        return list(by_value.values())

    def moments(self, stage: Sequence[Weight], factored: Mapping[str, Replacement]) -> dict[str, tuple[Joint, Joint]]:
        """For each weight of a stage the moments of both folds."""
        uses = {weight.name: self._required(weight) for weight in stage}
        (source,) = {use.site.vectors.name for use in uses.values()}
        given = {name: use.site.node.outputs[0].name for name, use in uses.items()}
        before = Runner(self.dense, self.folder, only=list(given.values()))
        after = Runner(self.rewritten(factored), self.folder, only=[source])

        def joint(feed: Feed) -> dict[str, Joint]:
            mask = feed.get(MASK)
            (x,) = after(feed, [source]) if source not in feed else (feed[source],)
            rows = token_rows(x, mask)
            square = rows.T @ rows
            outputs = zip(given, before(feed, list(given.values())), strict=True)
            return {name: _joint(rows, token_rows(y, mask), square) for name, y in outputs}

        folds = JointFolds()
        with threads(self.jobs) as pool:
            for i, found in enumerate(pool.map(joint, self.feeds)):
                for name, each in found.items():
                    folds.add(name, each, judges=i >= self.fit_count)
        return folds.both()

    def put(self, weight: Weight, replacement: Replacement) -> None:
        """Do nothing: the next stage rewrites the graph with all numbers found until then."""

    def bias(self, weight: Weight) -> Vector | None:
        """None: in a graph a bias is an operand of another node than the product."""
        return None

    def _use(self, weight: Weight) -> Use | None:
        """The only place of a weight, if that is a product `x W` which can be watched."""
        uses = self.uses[weight.name]
        if len(uses) != 1 or not watched(uses, self.dense.graph):
            return None
        site = uses[0].site
        return uses[0] if site.node.op_type == "MatMul" and site.at == 1 else None

    def _required(self, weight: Weight) -> Use:
        use = self._use(weight)
        assert use is not None
        return use


def _joint(x: NDArray[Any], y: NDArray[Any], square: NDArray[Any]) -> Joint:
    """The moments of one batch; `square` is `x' x` where all is finite."""
    finite = np.isfinite(x).all(1) & np.isfinite(y).all(1)
    if not finite.all():
        x, y = x[finite], y[finite]
        square = x.T @ x
    return Joint(square, y.T @ x, x.sum(0), y.sum(0), float(np.square(y).sum()), len(x))
