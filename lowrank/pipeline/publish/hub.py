"""A finished run as one folder in the layout of the Hub: torch weights, and graphs under `onnx/`.

transformers, sentence-transformers, `optimum` and transformers.js each find in it what they look for. The names of
graphs are theirs: `model.onnx`, and for each type a suffix.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lowrank.artifacts import parse_json, read_json, staged
from lowrank.artifacts.files import RECORD_FILE, atomic, linked
from lowrank.artifacts.lock import holding
from lowrank.backends import Backend
from lowrank.backends.base import signature_of
from lowrank.core.analysis import Analysis
from lowrank.edge.target import Dtype, Target
from lowrank.errors import ArtifactError, CalibrationError, ExportError
from lowrank.parallel import one_thread_each
from lowrank.pipeline.publish.model_card import CONFIG_FILE, write_card
from lowrank.pipeline.run.layout import MODEL_FOLDER, REPORT_FILE, WITH_PAST_FILE
from lowrank.pipeline.run.read import read_run
from lowrank.pipeline.run.write import rounding_feeds, write_past
from lowrank.pipeline.session import read_calibration
from lowrank.pipeline.settings import Settings
from lowrank.results.report import ONNX_FILE, Report

GRAPHS = "onnx"
NAMES: dict[str, tuple[str, ...]] = {
    "float32": ("model",),
    "float16": ("model_fp16",),
    # A browser asks for `quantized` if nothing is said.
    "int8": ("model_int8", "model_quantized"),
    "int4": ("model_q4",),
    "nbits4": ("model_q4",),
    "int3": ("model_quantized",),
    "int2": ("model_quantized",),
    "mixed": ("model_quantized",),
}
"""By the type of weights, what transformers.js calls a graph."""
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
    analysis, _, report = read_run(folder)
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
        with tempfile.TemporaryDirectory(dir=stage) as place:
            graph = _for_generation(folder, Path(place), report, remark) or folder / ONNX_FILE
            graphs = _graphs(folder, graph, stage / GRAPHS, report, analysis, tuple(dtypes), remark)
        _tell_javascript(stage, graphs)
        write_card(stage, report, [path.name for path in graphs])
    return [out / GRAPHS / path.name for path in graphs]


def _for_generation(folder: Path, place: Path, report: Report, remark: Callable[[str], object]) -> Path | None:
    """The graph with a cache that pipelines look for which generate text: that of the run, or one that is written now.

    None for models that generate none, and where there is no such graph, which is then said.
    """
    from lowrank.backends.torch.huggingface import model_class, read_config

    there, model = folder / WITH_PAST_FILE, folder / MODEL_FOLDER
    if there.is_file():
        return there
    config = read_config(model / CONFIG_FILE, compressed=True)
    if not model_class(config).can_generate():
        return None
    if config.is_encoder_decoder:
        remark(
            f"pipelines that generate look for encoder_model.onnx and decoder_model_merged.onnx in {GRAPHS}/, which "
            f"are not written: {ONNX_FILE} is one pass of encoder and decoder, without a cache; generate with torch"
        )
        return None
    try:
        if report.target.dtype == "mixed":
            raise ExportError("its types were chosen weight by weight")
        for note in write_past(_backend(folder), place, report.target):
            remark(note)
    except ExportError as error:
        remark(
            f"pipelines that generate look for a {ONNX_FILE} with a cache, and this one has none ({error}); generate "
            "with torch, or try `lowrank compress --with-past`"
        )
        return None
    return place / WITH_PAST_FILE


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
    graph: Path,
    place: Path,
    report: Report,
    analysis: Analysis,
    dtypes: tuple[Dtype, ...],
    remark: Callable[[str], object],
) -> list[Path]:
    from lowrank.edge.graph_file import fit_file, write_again
    from lowrank.evaluate.parity import check_parity

    target = report.target
    graphs = _named(graph, place, target.dtype)
    wanted: list[Dtype] = [dtype for dtype in dict.fromkeys(dtypes) if dtype not in ("float32", target.dtype)]
    if graph.name == WITH_PAST_FILE:
        if wanted:
            remark(f"the graph with the cache is there in {target.dtype}, and in no other type")
        return graphs
    if not wanted and not target.is_rounded:
        return graphs
    backend = _backend(folder)
    plain = place / ".plain.onnx"
    backend.write_onnx(plain)
    check_parity(backend, plain)
    if target.is_rounded:
        graphs += _named(plain, place, "float32")
    feeds: Sequence[Any] = ()
    if wanted:
        try:
            feeds = rounding_feeds(read_calibration(backend, Settings.from_json(analysis.settings)))
        except CalibrationError as error:
            remark(f"rounded to the nearest, as the run's data cannot be read: {error}")
    for dtype in wanted:
        rounded = place / f".{dtype}.onnx"
        other = Target(profile=target.profile, dtype=dtype)
        _, notes = write_again(backend, plain, rounded, other)
        for note in [*notes, *fit_file(rounded, other, signature_of(backend), feeds)]:
            remark(note)
        named = _named(rounded, place, dtype)
        if not named:
            remark(f"{dtype} is left out: {' and '.join(NAMES[dtype])} is there in another type")
        graphs += named
    for path in place.glob(".*"):
        path.unlink()
    return graphs


def _named(graph: Path, place: Path, dtype: str) -> list[Path]:
    """A graph under the names that its type has there and no other has taken, with its numbers in `NAME.onnx_data` if
    they are beside it."""
    from lowrank.backends.onnx.save import renamed

    free = [path for name in NAMES[dtype] if not (path := place / f"{name}.onnx").exists()]
    return [renamed(graph, path, "_data") for path in free]


def _backend(folder: Path) -> Backend:
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
