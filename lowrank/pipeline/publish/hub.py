"""A finished run as one folder in the layout of the Hub: torch weights, and graphs under `onnx/`.

transformers, sentence-transformers, `optimum` and transformers.js each find in it what they look for. The names of
graphs are theirs: `model.onnx`, and for each type a suffix.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.artifacts import parse_json, read_json, staged
from lowrank.artifacts.files import RECORD_FILE, atomic, linked
from lowrank.artifacts.lock import holding
from lowrank.backends.base import signature_of
from lowrank.core.analysis import Analysis
from lowrank.core.plan import stored_weights
from lowrank.edge.target import Dtype, Target
from lowrank.errors import ArtifactError, CalibrationError, ExportError
from lowrank.parallel import one_thread_each
from lowrank.pipeline.publish.genai import write_genai_config
from lowrank.pipeline.publish.generating import Generating, write_generation_config
from lowrank.pipeline.publish.graph_names import GRAPHS, left_out, named, others
from lowrank.pipeline.publish.model_card import CONFIG_FILE, write_card
from lowrank.pipeline.run.layout import MODEL_FOLDER, REPORT_FILE, WITH_PAST_FILE
from lowrank.pipeline.run.read import read_run
from lowrank.pipeline.run.write import rounding_feeds
from lowrank.pipeline.session import read_calibration
from lowrank.pipeline.settings import Settings
from lowrank.results.report import ONNX_FILE, Report

if TYPE_CHECKING:
    from lowrank.backends.torch import ModuleBackend

FOR_JAVASCRIPT = "transformers.js_config"


@one_thread_each()
@holding("run")
def export_hub(
    run: str | Path,
    output: str | Path,
    *,
    dtypes: Sequence[Dtype] = (),
    remark: Callable[[str], object] = lambda _: None,
) -> list[Path]:
    """Everything of a run's model, and its graphs as `onnx/model.onnx`, `onnx/model_int8.onnx`, ...

    Weights are given another name and take no more room, where the file system can do that.

    Args:
        run: a finished run of a Hugging Face model.
        output: the folder; another one than the run.
        dtypes: types that the graph is rounded to as well, beside the one that it has.
        remark: is told what is not as it was asked for.

    Returns:
        The graphs.

    Raises:
        ExportError: if the run has no graph, or is none of a Hugging Face model.

    Example:
        lowrank.export_hub("lowrank-run", "my-model", dtypes=["int8"])
    """
    folder, out = Path(run).expanduser(), Path(output).expanduser()
    analysis, plan, report = read_run(folder)
    if report is None:
        raise ArtifactError(f"{folder / REPORT_FILE} is missing; `lowrank evaluate -o {folder}` writes it anew")
    model = folder / MODEL_FOLDER
    rebuild = read_json(model / RECORD_FILE, "model")["rebuild"]
    if not (model / CONFIG_FILE).is_file() or rebuild["kind"] != "huggingface":
        raise ExportError(
            f"{model} is not of a Hugging Face folder, which is what the Hub's layout is for; {ONNX_FILE} in {folder} "
            "runs by itself"
        )
    if out.resolve() in (folder.resolve(), model.resolve()):
        raise ExportError(f"{out} is the run itself; give another folder with -o")
    if not (folder / ONNX_FILE).is_file():
        raise ExportError(f"{folder} has no {ONNX_FILE}: {(report.problems or ['it was not written'])[0]}")
    with staged(out, owned=(GRAPHS,)) as stage:
        _copy(model, stage)
        (stage / GRAPHS).mkdir()
        backend, graphs = _backend(folder), list[Path]()
        if _generates(model):
            stored = stored_weights(plan, analysis)
            with_past = None if _widened(backend, model, analysis) else folder / WITH_PAST_FILE
            generating = Generating(backend, stage / GRAPHS, stored, remark, with_past)
            graphs = generating.write(report.target, dtypes)
            write_generation_config(backend.module, stage)
            if any(path.name == ONNX_FILE for path in graphs) and not generating.decodes:
                write_genai_config(backend, stage, remark)
        graphs = graphs or _graphs(folder, backend, stage / GRAPHS, report, analysis, tuple(dtypes), remark)
        _tell_javascript(stage, graphs)
        write_card(stage, report, [path.name for path in graphs])
    return [out / GRAPHS / path.name for path in graphs]


def _widened(backend: ModuleBackend, model: Path, analysis: Analysis) -> bool:
    """Give narrower heads the width again that the config says, in which pipelines make the first, empty cache."""
    from lowrank.backends.torch.heads import widen_

    entries = read_json(model / RECORD_FILE, "model")["replaced"]
    shapes = {record.weight.name: record.weight.shape for record in analysis.weights}
    return widen_(backend.module, entries, shapes)


def _generates(model: Path) -> bool:
    """Whether pipelines that generate text are for a model."""
    from lowrank.backends.torch.huggingface import model_class, read_config

    return bool(model_class(read_config(model / CONFIG_FILE, compressed=True)).can_generate())


def _copy(model: Path, stage: Path) -> None:
    """What people read and change is copied, weights are linked."""
    for entry in sorted(model.iterdir()):
        if entry.is_dir():
            shutil.copytree(entry, stage / entry.name)
        elif entry.suffix == ".safetensors":
            linked(str(entry), str(stage / entry.name))
        else:
            shutil.copyfile(entry, stage / entry.name)


def _graphs(
    folder: Path,
    backend: ModuleBackend,
    place: Path,
    report: Report,
    analysis: Analysis,
    dtypes: tuple[Dtype, ...],
    remark: Callable[[str], object],
) -> list[Path]:
    """The graphs of one pass, of a model that generates nothing."""
    from lowrank.edge.graph_file import fit_file, write_again
    from lowrank.evaluate.parity import check_parity

    target, wanted = report.target, others(report.target, dtypes)
    graphs = named(folder / ONNX_FILE, place, target.dtype)
    if not wanted and not target.is_rounded:
        return graphs
    plain = place / ".plain.onnx"
    backend.write_onnx(plain)
    check_parity(backend, plain)
    if target.is_rounded:
        graphs += named(plain, place, "float32")
    feeds: Sequence[Any] = ()
    if wanted:
        try:
            feeds = rounding_feeds(read_calibration(backend, Settings.from_json(analysis.settings)))
        except CalibrationError as error:
            remark(f"rounded to the nearest, as the run's data cannot be read: {error}")
    for dtype in wanted:
        rounded = place / f".{dtype}.onnx"
        other = Target(profile=target.profile, dtype=dtype)
        other = other if feeds else other.without_data
        _, notes = write_again(backend, plain, rounded, other)
        for note in [*notes, *fit_file(rounded, other, signature_of(backend), feeds)]:
            remark(note)
        found = named(rounded, place, dtype)
        if not found:
            remark(left_out(dtype))
        graphs += found
    for path in place.glob(".*"):
        path.unlink()
    return graphs


def _backend(folder: Path) -> ModuleBackend:
    """The run's model as it is loaded, with its own tokenizer."""
    from lowrank.backends.torch import ModuleBackend, load
    from lowrank.backends.torch.huggingface import tokenizer_files
    from lowrank.backends.torch.inputs import of_running

    module: Any = load(folder)
    model = folder / MODEL_FOLDER
    return ModuleBackend(
        module=module,
        source={"path": str(model), "kind": "huggingface", "fingerprint": ""},
        signature=of_running(module),
        rebuild={"kind": "huggingface"},
        tokenizer=model if tokenizer_files(model) else None,
    )


def _tell_javascript(folder: Path, graphs: Sequence[Path]) -> None:
    """Say in config.json which graphs have their numbers beside them: transformers.js fetches what is named there."""
    beside = {path.name: 1 for path in graphs if path.with_name(f"{path.name}_data").is_file()}
    path = folder / CONFIG_FILE
    content = parse_json(path.read_text(encoding="utf-8"))
    known = content.pop(FOR_JAVASCRIPT, None)
    # What the original's says of its own graphs is not true of these.
    config: dict[str, Any] = known if isinstance(known, dict) else {}
    config = {key: value for key, value in config.items() if key not in ("use_external_data_format", "dtype")}
    if beside:
        config["use_external_data_format"] = beside
    content |= {FOR_JAVASCRIPT: config} if config else {}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
