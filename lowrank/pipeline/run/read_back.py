"""A finished run taken apart: the replacements in its model, and the dense model that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lowrank.artifacts import hash_json, read_json
from lowrank.artifacts.files import RECORD_FILE, hash_files
from lowrank.backends import Backend, Opening, open_model
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan
from lowrank.core.structures.base import Replacement
from lowrank.edge.target import Target
from lowrank.errors import PlanMismatch, UnsupportedModel
from lowrank.pipeline.run.layout import MODEL_FOLDER
from lowrank.pipeline.run.read import check_source, read_files, read_run, source_of
from lowrank.results.report import ONNX_FILE, Report


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished run, taken apart."""

    folder: Path
    analysis: Analysis
    plan: Plan
    report: Report | None
    full: Backend
    """The dense model that has the products of its factors as weights."""
    layers: Mapping[str, Replacement]
    """What stands for each replaced weight, by its name."""
    fixed: Mapping[str, str] = field(default_factory=dict[str, str])
    """Groups that stay as they are, each with the reason."""
    replaced: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """What the model's record says of each replaced weight."""

    @property
    def is_healed(self) -> bool:
        """Whether training has changed what is in it; taken to be so where no report tells."""
        return self.report is None or any(entry.kept for entry in self.report.healing)


def read_finished_run(folder: Path) -> tuple[Analysis, Plan, Report | None]:
    """What a run says of itself; a graph is enough of a model."""
    if (folder / MODEL_FOLDER / RECORD_FILE).is_file() or not (folder / ONNX_FILE).is_file():
        return read_run(folder)
    return read_files(folder)


def find_original(
    folder: Path, analysis: Analysis, model: object, opening: Opening | None
) -> tuple[Backend | None, str]:
    """The model that a run was made from, if it is there, and what to say if it is not."""
    if model is not None:
        return open_model(model, opening or Opening()), ""
    path = analysis.source.get("path")
    if path is None:
        return None, "the original was a module in memory"
    try:
        name, known = source_of(analysis, folder, opening)
        backend = open_model(name, known)
        check_source(analysis, backend, folder)
    except PlanMismatch:
        return None, f"{path} has changed since the run was made from it"
    except (UnsupportedModel, OSError) as error:
        return None, f"the original cannot be read any more ({error})"
    return backend, ""


def take_apart(
    folder: Path, analysis: Analysis, plan: Plan, report: Report | None, original: Backend | None, opening: Opening
) -> Finished:
    """The replacements in a run's model, and the dense model around them.

    Raises:
        UnsupportedModel: if there are none that can be read.
    """
    record = folder / MODEL_FOLDER / RECORD_FILE
    content = read_json(record, "model") if record.is_file() else {}
    replaced: dict[str, Any] = content.get("replaced", {})
    if content and content.get("rebuild", {}).get("kind") != "onnx":
        from lowrank.backends.torch.module import ModuleBackend
        from lowrank.backends.torch.read_back import read_finished

        known = analysis.settings.get("opening")
        arch = opening.arch or (known.get("arch") if isinstance(known, dict) else None)
        full, layers = read_finished(
            folder / MODEL_FOLDER,
            analysis,
            replace(opening, arch=arch),
            original if isinstance(original, ModuleBackend) else None,
        )
        return Finished(folder, analysis, plan, report, full, layers, replaced=replaced)
    target = report.target if report else Target()
    if target.is_rounded or target.profile != "portable":
        form = f"rounded to {target.dtype}" if target.is_rounded else "fused for ONNX Runtime"
        raise UnsupportedModel(
            f"{folder / ONNX_FILE} is {form}, and there are no other factors in the run: compress again "
            "without --quantize and --profile, truncate that result, then round it with `lowrank export RUN -o FOLDER "
            "--quantize int8`"
        )
    from lowrank.backends.onnx.read_back import read_graph

    graph = read_graph(
        folder / ONNX_FILE,
        analysis,
        plan.options,
        {name: entry.get("tensors", {}) for name, entry in replaced.items()},
        folder / MODEL_FOLDER / "tokenizer.json",
    )
    return Finished(folder, analysis, plan, report, graph.backend, graph.replacements, graph.fixed, replaced)


def held_in_graph(folder: Path, analysis: Analysis, plan: Plan) -> Mapping[str, Replacement]:
    """The factors in a run's graph, by weight name, as far as they can be read."""
    return take_apart(folder, analysis, plan, None, None, Opening()).layers


def hash_of(finished: Finished) -> str:
    """Of what a run's model is: the files that hold its numbers, and its plan."""
    folder = finished.folder
    parts = [path for path in sorted((folder / MODEL_FOLDER).glob("model.*")) if path.is_file()]
    graphs = [path for path in (folder / ONNX_FILE, folder / f"{ONNX_FILE}.data") if path.is_file()]
    return hash_json([hash_files(parts or graphs), finished.plan.to_json()])
