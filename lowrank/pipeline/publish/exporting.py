"""Graphs out: the dense model for comparison, and other forms of what there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.artifacts import read_json, staged
from lowrank.artifacts.lock import holding
from lowrank.backends import Backend, Opening, open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.onnx.opset import OPSET
from lowrank.core.rounding.formats import FORMATS
from lowrank.core.structures import structure_named
from lowrank.core.weight import Weight
from lowrank.edge.target import Target
from lowrank.errors import ExportError
from lowrank.parallel import one_thread_each
from lowrank.pipeline.run.layout import ADAPTABLE_FILE, GRAPHS, PLAN_FILE, REPORT_FILE
from lowrank.pipeline.run.read import check_source, read_run, source_of
from lowrank.pipeline.run.write import rounding_feeds, write_past
from lowrank.pipeline.session import read_calibration
from lowrank.pipeline.settings import Settings
from lowrank.results.report import ONNX_FILE

if TYPE_CHECKING:
    from lowrank.backends.torch import ModuleBackend


@one_thread_each()
@holding("output")
def export(
    model: object,
    output: str | Path,
    *,
    opening: Opening | None = None,
    opset: int | None = None,
    with_past: bool = False,
    target: Target | None = None,
    settings: Settings | None = None,
    remark: Callable[[str], object] = lambda _: None,
) -> Path:
    """The dense model as `output/model.onnx`, written the same way as a compressed one and checked against torch.

    A graph, or that of a run, is only rounded or fused.

    Args:
        model: see `open_model`; or a run folder, for its graph.
        output: the folder.
        opening: how to build the model if its file does not say.
        opset: the operator set; a graph keeps its own.
        with_past: also write `model_with_past.onnx`.
        target: what the graph is for.
        settings: name data, by which the shapes of inputs are known that the model does not tell, and on which numbers
            are rounded; without any they are rounded to the nearest.
        remark: is told what stayed as it was where it was to be rounded.

    Returns:
        The graph.

    Raises:
        ExportError: if it cannot be traced, or what was written does not agree with torch.
    """
    from lowrank.edge.graph_file import fit_file, fit_for
    from lowrank.evaluate.parity import check_parity

    target, opening, folder = target or Target(), opening or Opening(), Path(output).expanduser()
    target.check()
    graph = graph_of(model) if isinstance(model, str | Path) else None
    if graph is not None and opset is not None:
        raise ExportError(f"{graph} is a graph already and keeps its operator set; leave --opset out")
    backend = open_model(model, opening) if graph is None else _opened_graph(graph, opening, target)
    if with_past:
        backend.check_with_past()
    if settings is None and target.is_fixed and target.is_rounded:
        # Ranges cannot be fixed without data; token models have some built in.
        settings = Settings()
    calibration = None if settings is None else read_calibration(backend, settings)
    backend, notes = fit_for(backend if calibration is None else calibration.backend, target)
    for note in [*notes, *_pivots_stay(graph, target)]:
        remark(note)
    with staged(folder, owned=GRAPHS) as stage:
        backend.write_onnx(stage / ONNX_FILE, opset)
        assert isinstance(backend.signature, Signature)
        if target.is_rounded:
            # Rounded numbers differ; what is rounded must not.
            check_parity(backend, stage / ONNX_FILE)
        for note in backend.signature.left_out_notes:
            remark(note)
        for note in fit_file(stage / ONNX_FILE, target, backend.signature, rounding_feeds(calibration)):
            remark(note)
        if not target.is_rounded:
            parity = check_parity(backend, stage / ONNX_FILE)
            names = ", ".join(parity.outputs or ())
            other = "torch" if graph is None else graph.name
            remark(f"compared with {other} on {len(parity.cases)} inputs, same to {parity.relative:.0e}: {names}")
        for note in write_past(backend, stage, target) if with_past else ():
            remark(note)
    return folder / ONNX_FILE


def _opened_graph(graph: Path, opening: Opening, target: Target) -> Backend:
    """A graph that is there already, to be rounded or fused.

    Raises:
        ExportError: if there is nothing to do with it.
    """
    from lowrank.backends.onnx.open import read_onnx

    if target == Target():
        raise ExportError(
            f"{graph} is an ONNX file already; `lowrank compress` makes a smaller one of it, --quantize int8 rounds "
            "it, and --profile ort fuses it for ONNX Runtime"
        )
    return read_onnx(graph.resolve(), opening)


def _pivots_stay(graph: Path | None, target: Target) -> list[str]:
    """A remark if a graph is of a run whose plan has factors that do not bear the type of a target."""
    plan = None if graph is None else graph.with_name(PLAN_FILE)
    if plan is None or not plan.is_file() or target.dtype not in FORMATS:
        return []
    chosen = {entry["structure"] for entry in read_json(plan, "plan")["groups"]}
    if all(structure_named(name).can_round for name in chosen):
        return []
    return [
        f"{graph} has pivoted factors, which do not bear {target.dtype}; the model_int8.onnx of a run has none, nor "
        f"has what `lowrank compress --quantize {target.dtype}` makes"
    ]


def graph_of(model: str | Path) -> Path | None:
    """The graph that is there already: an `.onnx` file itself, or that of a run folder; None for other models."""
    path = Path(model).expanduser()
    if path.suffix == ".onnx" and path.is_file():
        return path
    return path / ONNX_FILE if (path / REPORT_FILE).is_file() and (path / ONNX_FILE).is_file() else None


@one_thread_each()
@holding("output")
def export_ort(graph: Path, output: str | Path) -> list[Path]:
    """A graph in ONNX Runtime's own format, with the list of operators that a minimal build needs for it.

    Raises:
        ExportError: if it cannot be converted.
    """
    from lowrank.edge.ort_format import SUFFIXES, write_ort

    folder = Path(output).expanduser()
    with staged(folder, owned=tuple(f"{graph.stem}{suffix}" for suffix in SUFFIXES)) as stage:
        return [folder / path.name for path in write_ort(graph, stage)]


@one_thread_each()
@holding("output")
def export_adapter_inputs(
    model: object, output: str | Path, *, opening: Opening | None = None, opset: int | None = None
) -> tuple[Path, int]:
    """`model_with_adapters.onnx`: a graph whose linear layers take a LoRA of any rank at every run, or none.

    Args:
        model: a run folder, for its compressed model, or a model.
        output: the folder.
        opening: how to build the model if its file does not say.
        opset: the operator set.

    Returns:
        The file, and how many layers take an adapter.

    Raises:
        ExportError: if it cannot be traced.
    """
    from lowrank.edge.adapters import export_adaptable
    from lowrank.healing.adapter import adaptable

    backend, signature, targeted = _module_of(model, opening, "adapters can only be inputs of a model")
    layers = [layer.name for weight in targeted if weight.is_linear for layer in weight.layers]
    shapes = adaptable(backend.module, layers)
    folder = Path(output).expanduser()
    with staged(folder, owned=(ADAPTABLE_FILE, f"{ADAPTABLE_FILE}.data")) as stage:
        export_adaptable(backend.module, signature, shapes, stage / ADAPTABLE_FILE, opset or OPSET)
    return folder / ADAPTABLE_FILE, len(shapes)


@one_thread_each()
@holding("output")
def export_torch(
    model: object,
    output: str | Path,
    form: str,
    *,
    opening: Opening | None = None,
    remark: Callable[[str], object] = lambda _: None,
) -> Path:
    """A model as a file of torch's exporter, of ExecuTorch or of LiteRT, straight from its module and compared with it.

    Args:
        model: a run folder, for its compressed model, or a model.
        output: the folder.
        form: `pt2`, `executorch` or `litert`.
        opening: how to build the model if its file does not say.
        remark: is told what shapes the file takes, and how exact it is.

    Returns:
        The file.

    Raises:
        ExportError: if there is no such form, its package is not installed, the model cannot be written in it, or what
            was written does not agree with the model.
    """
    from lowrank.edge.torch_formats import TORCH_FORMATS
    from lowrank.evaluate.parity import compared

    if form not in TORCH_FORMATS:
        raise ExportError(f"{form!r} is no form of a module; choose from {', '.join(TORCH_FORMATS)}")
    kind, folder = TORCH_FORMATS[form], Path(output).expanduser()
    kind.check()
    backend, signature, _ = _module_of(model, opening, f"{kind.file} can only be written of a model")
    with staged(folder, owned=(kind.file,)) as stage:
        run = kind.save(backend.module, signature, stage / kind.file)
        parity = compared(backend, kind.file, run, kind.sizes(signature))
    remark(f"it takes {kind.shapes(signature)}")
    names = ", ".join(parity.outputs or ())
    remark(f"compared with torch on {len(parity.cases)} inputs, same to {parity.relative:.0e}: {names}")
    return folder / kind.file


def _module_of(model: object, opening: Opening | None, claim: str) -> tuple[ModuleBackend, Signature, list[Weight]]:
    """The module of a model, or the compressed one of a run, with its inputs and the weights that are meant.

    Raises:
        ExportError: if there is none; it begins with the claim.
    """
    from lowrank.backends.torch import ModuleBackend

    run = Path(model).expanduser() if isinstance(model, str | Path) else None
    if run is not None and (run / REPORT_FILE).is_file():
        analysis, _, _ = read_run(run)
        path, opening = source_of(analysis, run, opening)
        dense = open_model(path, opening)
        check_source(analysis, dense, run)
        backend = dense.saved_in(run, dict) if isinstance(dense, ModuleBackend) else dense
        targeted = [record.weight for record in analysis.weights]
    else:
        backend = open_model(model, opening or Opening())
        targeted = [weight for weight in backend.weights if weight.role == "projection"]
    if not isinstance(backend, ModuleBackend) or not isinstance(backend.signature, Signature):
        raise ExportError(f"{claim} that can be built: {backend.signature}")
    return backend, backend.signature, targeted
