"""A pass for Olive: `{"type": "LowRank", "budget": 0.5}` among the passes of a workflow.

Olive finds passes in a package config, one that replaces its own, so ours holds all of Olive's passes and this one:

    python -m lowrank.integrations.olive passes.json
    olive run --config workflow.json --package-config passes.json
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

from olive.hardware import AcceleratorSpec
from olive.model import HfModelHandler, ONNXModelHandler
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.search.search_parameter import Categorical

from lowrank.artifacts import parse_json, staged
from lowrank.artifacts.files import atomic
from lowrank.backends import Opening
from lowrank.core.budget import Budget
from lowrank.core.weight import TARGETS
from lowrank.edge.target import Target
from lowrank.errors import LowRankError
from lowrank.pipeline import REPORT_FILE, Settings, Training, compress
from lowrank.results.report import ONNX_FILE, Report

NAME = "LowRank"
OTHERS = ("error", "size")
"""Budgets beside the keep ratio, which has a default."""


class LowRank(Pass):
    """Factors the weights of a Hugging Face or ONNX model within a budget.

    A Hugging Face model stays one, or becomes an ONNX model with `onnx`; an ONNX model stays one.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        def param(type_: Any, default: Any, description: str, search: Any = None) -> PassConfigParam:
            return PassConfigParam(type_=type_, default_value=default, description=description, search_defaults=search)

        keeps = Categorical([0.3, 0.5, 0.7])
        return {
            "budget": param(float, 0.5, "Share of the targeted weights' parameters to keep.", keeps),
            "error": param(float | None, None, "In its place: relative output error that each weight may have."),
            "size": param(float | None, None, "In its place: bytes of the ONNX file, or a share of the original's."),
            "calib": param(str | None, None, "Text (.txt, .tsv, .csv, .jsonl), .npz of inputs, or self, or none."),
            "mixed": param(bool, True, "Add built-in text to a text."),
            "column": param(str | None, None, "Column of a table, or key of .jsonl."),
            "samples": param(int, 4096, "Calibration samples at most."),
            "targets": param(list[str], ["projections"], ", ".join(TARGETS) + "."),
            "include": param(list[str], [], "Only weights of these names, globs or re:regex."),
            "exclude": param(list[str], [], "Not weights of these names."),
            "refit": param(bool, True, "Fit what is replaced to what it sees in the compressed model."),
            "refine": param(bool, True, "Then fit each block to the dense one's outputs."),
            "heal": param(float | None, None, "Then train for so many minutes to imitate the dense model."),
            "onnx": param(bool, False, "Give the ONNX model of a Hugging Face model."),
            "quantize": param(str, "float32", "Type of the ONNX model's weights: float16, int8, int4, int3 or int2."),
        }

    def _run_for_config(
        self, model: Any, config: type[BasePassConfig], output_model_path: str
    ) -> HfModelHandler | ONNXModelHandler:
        wanted: dict[str, Any] = cast(Any, config).model_dump()
        if not isinstance(model, HfModelHandler | ONNXModelHandler):
            raise LowRankError(f"the pass {NAME} takes HfModel and ONNXModel, not {type(model).__name__}")
        stays = isinstance(model, HfModelHandler) and not wanted["onnx"]
        if stays and (wanted["quantize"] != "float32" or wanted["size"] is not None):
            raise LowRankError("quantize and size are of ONNX files: set onnx to true, or quantise in a later pass")
        output = Path(output_model_path).with_suffix("")
        with tempfile.TemporaryDirectory() as place:
            run = Path(place) / "run"
            report = _compress(model, wanted, run)
            if report.problems:
                raise LowRankError("; ".join(report.problems))
            with staged(output) as stage:
                for path in _results(run, stays):
                    (shutil.copytree if path.is_dir() else shutil.copyfile)(path, stage / path.name)
        attributes = {**(model.model_attributes or {}), "lowrank": _figures(report)}
        if stays and isinstance(model, HfModelHandler):
            return HfModelHandler(
                model_path=str(output),
                task=model.task,
                io_config=model.io_config,
                model_attributes={"lowrank": attributes["lowrank"]},
            )
        return ONNXModelHandler(model_path=str(output), onnx_file_name=ONNX_FILE, model_attributes=attributes)


def _results(run: Path, stays: bool) -> list[Path]:
    """The files of a run that the next pass of the workflow gets."""
    if stays:
        return [*(run / "model").iterdir(), run / REPORT_FILE]
    return [path for path in (run / ONNX_FILE, run / f"{ONNX_FILE}.data", run / REPORT_FILE) if path.exists()]


def _compress(model: HfModelHandler | ONNXModelHandler, wanted: dict[str, Any], run: Path) -> Report:
    limits = {name: wanted[name] for name in OTHERS if wanted[name] is not None}
    if len(limits) > 1:
        raise LowRankError(f"give one of {' and '.join(OTHERS)}")
    kind, limit = next(iter(limits.items()), ("params", wanted["budget"]))
    names = ("include", "exclude", "targets", "calib", "column", "samples", "mixed")
    adapter = getattr(model, "adapter_path", None)
    return compress(
        _place(model),
        Budget(cast(Any, kind), limit),
        output=run,
        settings=Settings(**{name: wanted[name] for name in names}),
        opening=Opening(lora=adapter),
        refit=wanted["refit"],
        refine=wanted["refine"],
        heal=None if wanted["heal"] is None else Training(minutes=wanted["heal"]),
        target=Target(dtype=wanted["quantize"]),
        latency=False,
        int8=False,
    )


def _place(model: HfModelHandler | ONNXModelHandler) -> str:
    """The path of a model on this machine; a model named as on the Hugging Face hub is downloaded."""
    path = model.model_name_or_path if isinstance(model, HfModelHandler) else model.model_path
    if isinstance(model, HfModelHandler) and not Path(path).exists():
        from huggingface_hub import snapshot_download

        return snapshot_download(path)
    return str(path)


def _figures(report: Report) -> dict[str, Any]:
    """Figures of the report for later passes of the workflow."""
    return {"targets": report.targets.to_json(), "model": report.model.to_json(), "error": report.error.relative}


def package_config() -> dict[str, Any]:
    """Olive's own package config with this pass among its passes.

    Example:
        olive.run(workflow, package_config=package_config())
    """
    content = parse_json(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    content["passes"][NAME] = {
        "module_path": f"lowrank.integrations.olive.{NAME}",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
    }
    return content


def main() -> None:
    """Write the package config to the file that is named."""
    import json

    if len(sys.argv) != 2:
        sys.exit("usage: python -m lowrank.integrations.olive passes.json")
    with atomic(Path(sys.argv[1])) as temporary:
        temporary.write_text(json.dumps(package_config(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
