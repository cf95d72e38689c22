"""What is known of a compressed model without running it: errors of weights, parameters, bytes and multiply-adds."""

from __future__ import annotations

import math
from pathlib import Path

from lowrank.artifacts import read_json
from lowrank.backends.base import Backend
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan, cost_in, dense_cost
from lowrank.core.prediction import weight_error
from lowrank.core.structures.base import Option
from lowrank.core.structures.dense import Dense
from lowrank.errors import ArtifactError
from lowrank.results.parts import BudgetResult, Errors, ModelSizes, Skipped, Targets
from lowrank.results.report import Report
from lowrank.results.vocabulary import CutVocabulary


def planned_report(dense: Backend, params: int, nbytes: int, analysis: Analysis, plan: Plan) -> Report:
    """The report of a compressed model as far as its plan tells it; the relative error is that of the weights.

    Args:
        dense: the original.
        params: of the compressed model.
        nbytes: of its tensors.
        analysis: of the original.
        plan: that the compressed model follows.
    """
    before, after, groups = analysis.dense_params, plan.cost, analysis.groups
    # Weights that are decided together share the error of what they give together.
    per_weight = {name: o.error**0.5 for o in plan.options for name in groups[o.group].weights}
    return Report(
        targets=Targets(params_before=before, params_after=after, keep_ratio=after / before if before else 1.0),
        model=_sizes(dense, params, nbytes, analysis, plan),
        budget=BudgetResult(
            kind=plan.budget.kind if plan.budget else "plan",
            limit=plan.budget.limit if plan.budget else None,
            reached=None if math.isnan(plan.reached) else plan.reached,
            size=plan.budget.file_bytes if plan.budget else None,
        ),
        error=Errors(relative=weight_error(analysis, plan), per_weight=per_weight),
        skipped=[Skipped(name=skip.name, shape=list(skip.shape), reason=skip.reason) for skip in analysis.skips],
        notes=[*analysis.notes, *_cut_before(dense), *plan.notes],
    )


def _cut_before(dense: Backend) -> list[str]:
    """A remark on a dense model that has fewer tokens than its original."""
    folder = dense.source.get("path")
    path = Path(str(folder)) / CutVocabulary.file
    if folder is None or not path.is_file():
        return []
    try:
        return [CutVocabulary.from_json(read_json(path, "cut_vocabulary")).remark]
    except ArtifactError as error:
        return [f"what the model lost when its vocabulary was cut is not known: {error}"]


def _sizes(dense: Backend, params: int, nbytes: int, analysis: Analysis, plan: Plan) -> ModelSizes:
    """Parameters, bytes of the tensors, and multiply-adds, before and after."""
    structure, rest = Dense(), 0
    for w in (w for w in dense.weights if w.name not in analysis):
        rest += int(structure.spent("macs", Option(w.name, structure.name, w.full_rank, w.params, 0.0).curve, [w])[0])
    return ModelSizes(
        params_before=dense.params,
        params_after=params,
        bytes_before=dense.nbytes,
        bytes_after=nbytes,
        macs_before=rest + dense_cost("macs", analysis),
        macs_after=rest + sum(cost_in("macs", option, analysis) for option in plan.options),
    )
