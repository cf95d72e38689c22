"""The graphs that pipelines which generate text look for: with a cache, and of an encoder and a decoder by itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.backends.inputs import Signature
from lowrank.backends.onnx.opset import OPSET
from lowrank.backends.onnx.save import copy_graph
from lowrank.core.rounding.formats import Stored
from lowrank.edge.graph_file import fit_file, fit_for
from lowrank.edge.target import Dtype, Target
from lowrank.errors import ExportError
from lowrank.evaluate.decoding import check_decoding
from lowrank.evaluate.generation import check_generation
from lowrank.pipeline.publish.graph_names import GRAPHS, STEM, left_out, named, others
from lowrank.pipeline.run.layout import WITH_PAST_FILE
from lowrank.results.report import ONNX_FILE

if TYPE_CHECKING:
    from lowrank.backends.torch import ModuleBackend

CONFIG = "generation_config.json"


@dataclass(eq=False)
class Generating:
    """Writes the graphs of one model."""

    backend: ModuleBackend
    place: Path
    """Where they go."""
    stored: Mapping[str, Stored]
    """How each weight is stored, for the type `mixed`."""
    remark: Callable[[str], object]
    with_past: Path | None
    """The graph with a cache of the run, which may not be there; None if it is another one."""
    _exact: dict[bool, Path] = field(default_factory=dict[bool, Path])
    """The folders of graphs as torch computes: of the model itself, and of it without pivots."""

    def write(self, target: Target, dtypes: Sequence[Dtype]) -> list[Path]:
        """The graphs in a run's own type, without rounding, and in other types; none of a model that generates
        nothing, or where they cannot be had, which is then said.

        Args:
            target: what the run's own graph is for.
            dtypes: types that are asked for beside that one.
        """
        module: Any = self.backend.module
        if not module.can_generate() or not isinstance(self.backend.signature, Signature):
            return []
        targets = [target, *([Target()] if target.is_rounded else [])]
        targets += [Target(profile=target.profile, dtype=dtype) for dtype in others(target, dtypes)]
        graphs = list[Path]()
        with tempfile.TemporaryDirectory(dir=self.place) as place:
            for each in targets:
                try:
                    graphs += self._in_type(each, Path(place), each is target)
                except ExportError as error:
                    self._say_lack(each, error)
                    if not self._exact:
                        break
        return graphs

    @property
    def decodes(self) -> bool:
        """Whether the model has an encoder and a decoder."""
        return bool(getattr(self.backend.module.config, "is_encoder_decoder", False))

    def _in_type(self, target: Target, place: Path, own: bool) -> list[Path]:
        """The graphs for a target; those of a run's own type may be there already."""
        from lowrank.backends.torch import ModuleBackend

        if own and self.with_past is not None and self.with_past.is_file() and not self.decodes:
            return named(self.with_past, self.place, target.dtype)
        model, notes = fit_for(self.backend, target)
        assert isinstance(model, ModuleBackend) and isinstance(model.signature, Signature)
        exact = self._written(model, place)
        folder = exact
        if target != Target():
            folder = place / target.dtype
            folder.mkdir()
            for graph in sorted(exact.glob("*.onnx")):
                copy_graph(graph, folder / graph.name)
                # Their inputs are not those of the calibration data, so they are rounded to the nearest.
                found = fit_file(folder / graph.name, target.without_data, model.signature, stored=self.stored)
                notes += [f"{graph.stem}: {note}" for note in found]
            self._check(model, folder, exact=not target.is_rounded)
        graphs = list[Path]()
        for graph in sorted(folder.glob("*.onnx")):
            stem = graph.stem if self.decodes else STEM
            found = named(graph, self.place, target.dtype, stem)
            if not found:
                self.remark(left_out(target.dtype, stem))
            graphs += found
        for note in notes:
            self.remark(f"{target.dtype}: {note}")
        return graphs

    def _written(self, model: ModuleBackend, place: Path) -> Path:
        """The folder of a model's graphs as torch computes, written once and checked.

        Raises:
            ExportError: if they cannot be written, do not run, or choose other tokens than torch.
        """
        known = self._exact.get(model is self.backend)
        if known is not None:
            return known
        folder = place / f"exact{len(self._exact)}"
        folder.mkdir()
        if self.decodes:
            from lowrank.backends.torch.export_seq2seq import export_seq2seq

            assert isinstance(model.signature, Signature)
            export_seq2seq(model.module, model.signature, folder, OPSET)
        else:
            model.write_with_past(folder / WITH_PAST_FILE)
        for note in self._check(model, folder, exact=True):
            self.remark(note)
        return self._exact.setdefault(model is self.backend, folder)

    def _check(self, model: ModuleBackend, folder: Path, exact: bool) -> list[str]:
        if self.decodes:
            check_decoding(model, folder, exact)
            return []
        return check_generation(model, folder / WITH_PAST_FILE, exact)

    def _say_lack(self, target: Target, error: ExportError) -> None:
        if self.decodes:
            self.remark(
                f"pipelines that generate look for encoder_model.onnx and decoder_model_merged.onnx in {GRAPHS}/, "
                f"which are not there in {target.dtype} ({error}); generate with torch"
            )
        else:
            self.remark(
                f"pipelines that generate look for a {ONNX_FILE} with a cache, and there is none in {target.dtype} "
                f"({error}); generate with torch"
            )


def write_generation_config(module: Any, folder: Path) -> None:
    """Write what a model's config says of generation, unless the original has a file of that."""
    path = folder / CONFIG
    if not path.is_file():
        module.generation_config.to_json_file(path)
