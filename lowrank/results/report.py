"""Report: what a compression came to, as measured. Its JSON is `report.json`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lowrank.edge.target import Target
from lowrank.results.json_part import LEFT_OUT, Document, rows_of
from lowrank.results.parts import (
    BudgetResult,
    Comparison,
    Cut,
    Errors,
    Graph,
    HealingResult,
    Latency,
    ModelSizes,
    Parity,
    Provenance,
    Quality,
    Refinement,
    Skipped,
    Targets,
)

ONNX_FILE, INT8_FILE = "model.onnx", "model_int8.onnx"
"""The exported model's name in a run, and that of the same one in eight bits beside it."""


@dataclass(frozen=True, kw_only=True)
class Report(Document):
    """The keys of `report.json`, in order; a part that could not be measured is None, and `notes` say why."""

    file = "report.json"
    remedy = "run `lowrank evaluate` to make it again"

    targets: Targets = field(metadata={"read": Targets.from_json})
    model: ModelSizes = field(metadata={"read": ModelSizes.from_json})
    budget: BudgetResult = field(metadata={"read": BudgetResult.from_json})
    error: Errors = field(metadata={"read": Errors.from_json})
    onnx: Graph | None = field(default=None, metadata={"read": Graph.from_json})
    parity: Parity | None = field(default=None, metadata={"read": Parity.from_json})
    latency: Latency | None = field(default=None, metadata={"read": Latency.from_json})
    quality: Quality | None = field(default=None, metadata={"read": Quality.from_json})
    refinement: Refinement | None = field(default=None, metadata={"read": Refinement.from_json, **LEFT_OUT})
    """None where the blocks were not fitted."""
    healing: list[HealingResult] = field(default_factory=list[HealingResult], metadata={"read": rows_of(HealingResult)})
    """One entry for each time that the model was healed."""
    cut: list[Cut] = field(default_factory=list[Cut], metadata={"read": rows_of(Cut)})
    """One entry for each time that a finished result was cut again."""
    skipped: list[Skipped] = field(default_factory=list[Skipped], metadata={"read": rows_of(Skipped)})
    notes: list[str] = field(default_factory=list[str])
    take: str | None = field(default=None, metadata=LEFT_OUT)
    """Which file to ship, and why; see `evaluate.choice`."""
    unfit: list[str] = field(default_factory=list[str])
    """What makes the result unfit for use, and what would help; see `evaluate.fitness`."""
    problems: list[str] = field(default_factory=list[str])
    """What was asked for and could not be done; the command line exits with 1 if there is any."""
    files: dict[str, int] = field(default_factory=dict[str, int])
    """Bytes of each file written."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    provenance: Provenance = field(default_factory=Provenance, metadata={"read": Provenance.from_json})

    def __str__(self) -> str:
        """What is left, how often the answer is the dense model's, and what stands against its use."""
        left = f"{self.targets.keep_ratio:.3f} of the targeted parameters are left"
        told = [f"{self.model.params_before:,} parameters, now {self.model.params_after:,}: {left}"]
        told += [self.quality.headline] if self.quality and self.quality.headline else []
        told += [self.take] if self.take else []
        return "\n".join([*told, *self.unfit, *(f"Problem: {problem}" for problem in self.last_problems)])

    @property
    def target(self) -> Target:
        """What the graph was written for."""
        return Target() if self.onnx is None else Target(profile=self.onnx.profile, dtype=self.onnx.dtype)

    @property
    def tasks(self) -> list[Comparison]:
        """What was measured on tasks; none where nothing was."""
        return (self.quality and self.quality.tasks) or []

    @property
    def last_problems(self) -> list[str]:
        """All problems, those of the last healing among them."""
        return [*self.problems, *(self.healing[-1].problems if self.healing else ())]


def held_against(report: Report, max_drop: float) -> Report:
    """The report of a model that may lose so much on its tasks; a problem in it, if it lost more."""
    worst = max(report.tasks, key=lambda row: row.drop, default=None)
    report = replace(report, budget=BudgetResult(kind="drop", limit=max_drop, reached=worst.drop if worst else None))
    if worst is None or worst.drop <= max_drop:
        return report
    return replace(
        report,
        problems=[
            *report.problems,
            f"{worst.task} drops by {worst.drop:.4g} as measured on what was written, and {max_drop:g} was "
            "allowed; allow more, give calibration text like that of the task with --calib, or heal longer",
        ],
    )
