"""Where the parameters of a model were, and where they are now."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan
from lowrank.report.page.positions import PARTS, part_of
from lowrank.results.report import Report


@dataclass(frozen=True, slots=True)
class ParamShare:
    """One part of a model."""

    name: str
    before: int
    after: int | None
    """None where nothing has been compressed yet."""

    @property
    def kept(self) -> float | None:
        """Share of its parameters that are left."""
        return None if self.after is None or not self.before else self.after / self.before


def parts_of(
    analysis: Analysis, plan: Plan | None, report: Report | None, couplings: Mapping[str, str]
) -> tuple[ParamShare, ...]:
    """Parameters by part, those that hold any.

    What neither is targeted nor stands among what was left out, vectors above all, is known only by the model's own
    count, which is in the report.
    """
    weights = [record.weight for record in analysis.weights]
    where = {w.name: part_of(w.name, w.role, couplings.get(w.name, "")) for w in weights}
    before: dict[str, float] = defaultdict(float)
    after: dict[str, float] = defaultdict(float)
    for weight in weights:
        before[where[weight.name]] += weight.params
    for skip in analysis.skips:
        part, count = part_of(skip.name, reason=skip.reason), math.prod(skip.shape)
        before[part] += count
        after[part] += count
    for option in plan.options if plan is not None else ():
        group = analysis.groups[option.group]
        whole = max(analysis.params(group), 1)
        for name in group.weights:
            # What a group costs is shared out by what its weights had.
            after[where[name]] += option.cost * analysis[name].weight.params / whole
    if report is not None:
        for counts, total in ((before, report.model.params_before), (after, report.model.params_after)):
            counts["rest"] += max(total - sum(counts.values()), 0)
    known = plan is not None
    return tuple(
        ParamShare(name, round(before[name]), round(after[name]) if known else None)
        for name in PARTS
        if round(before[name]) or round(after[name])
    )
