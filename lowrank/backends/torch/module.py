"""ModuleBackend: a live torch module. Walks it, reads its matrices, puts factors in their place, saves it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowrank.artifacts.files import RECORD_FILE, read_json
from lowrank.backends.base import Change, Outputs, not_exported
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.moment_sums import Observe
from lowrank.backends.onnx.opset import OPSET
from lowrank.backends.torch.couplings import find_couplings
from lowrank.backends.torch.curvature import output_curvature
from lowrank.backends.torch.describe import describe
from lowrank.backends.torch.export import export_onnx
from lowrank.backends.torch.export_cache import cache_shapes, export_with_past
from lowrank.backends.torch.heads import narrow_heads_
from lowrank.backends.torch.inputs import as_tensors, call, in_float32, with_floats, with_outputs
from lowrank.backends.torch.joint_moments import ModulePair
from lowrank.backends.torch.load import load_stored
from lowrank.backends.torch.model_folder import check_same, copy_extras, write_module
from lowrank.backends.torch.moments import Watch, watching
from lowrank.backends.torch.parameters import numbers_of, swapped
from lowrank.backends.torch.partial_forward import Prefix
from lowrank.backends.torch.replace import replace_layers_
from lowrank.backends.torch.replicas import Spares, jobs_for, replica
from lowrank.backends.torch.tensors import as_matrix, bytes_of, module_in_float32
from lowrank.backends.torch.unpivot import without_pivoted_layers
from lowrank.core.distance import OutputKind
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.gram import Side
from lowrank.core.weight import Coupling, Skip, Weight
from lowrank.errors import ExportError, NonFiniteWeight
from lowrank.parallel import threads


@dataclass(frozen=True, eq=False)
class ModuleBackend:
    """A torch module with what is needed to feed it, to copy it, and to build it again."""

    module: nn.Module
    source: Mapping[str, Any]
    signature: Signature | str
    """How to feed it, or why that is not known."""
    rebuild: Mapping[str, Any]
    """How `load` builds the dense module: `kind` and what that kind needs."""
    fresh: Callable[[], nn.Module] | None = None
    """A second module with the same weights; None copies this one."""
    tokenizer: Path | None = None
    extras: tuple[Path, ...] = ()
    """Files and folders that belong to the model and are copied along when it is saved."""
    config_file: Path | None = None
    """The one of them that is the config, whatever it is called."""
    replaced: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What `rewrite` did, by weight name."""

    @cached_property
    def _described(self) -> tuple[tuple[Weight, ...], tuple[Skip, ...]]:
        return describe(self.module, self.signature)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every matrix that a layer of a known type applies."""
        return self._described[0]

    @property
    def skips(self) -> tuple[Skip, ...]:
        """Every other tensor of two or more dimensions."""
        return self._described[1]

    @property
    def output_kind(self) -> OutputKind:
        """What the output is for, by its name, and by a pooling layer beside the model (sentence-transformers)."""
        return self.signature.output_kind if isinstance(self.signature, Signature) else "values"

    @property
    def couplings(self) -> tuple[Coupling, ...]:
        """Found by running the module on a few random tokens with its weights changed."""
        return self._couplings

    @cached_property
    def _couplings(self) -> tuple[Coupling, ...]:
        return find_couplings(self.module, self.signature, self.weights)

    @property
    def params(self) -> int:
        """Numbers in the model, ties counted once."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def nbytes(self) -> int:
        """Bytes of its state, ties counted once."""
        return bytes_of(self.module.state_dict())

    @cached_property
    def _by_name(self) -> dict[str, Weight]:
        return {weight.name: weight for weight in self.weights}

    def read(self, name: str) -> Matrix:
        """One weight as a float64 matrix."""
        return as_matrix(name, self.module.get_parameter(name), self._by_name[name].view)

    def bias(self, name: str) -> Vector | None:
        """The bias of the layer that applies a weight, in float64."""
        (layer, *_) = self._by_name[name].layers
        bias = getattr(self.module.get_submodule(layer.name), "bias", None) if layer.kind == "linear" else None
        return bias.detach().cpu().double().numpy() if isinstance(bias, Tensor) else None

    def check_finite(self) -> None:
        """Look at every parameter that is not a weight: one NaN in an embedding spoils every output."""
        known = {weight.name for weight in self.weights}
        for name, parameter in self.module.named_parameters():
            if name not in known and parameter.is_floating_point() and not torch.isfinite(parameter).all():
                shape = " x ".join(map(str, parameter.shape))
                raise NonFiniteWeight(f"{name} ({shape}) holds NaN or infinite values; repair the checkpoint")

    def rewrite(self, replacements: Mapping[str, Replacement]) -> ModuleBackend:
        """A backend whose module has low-rank layers; a tie stays one pair of tensors."""
        module = self.fresh() if self.fresh else copy.deepcopy(self.module)
        replaced = replace_layers_(module, self._by_name, replacements)
        replaced |= narrow_heads_(module, self.signature, replaced, lambda: self.couplings)
        return replace(self, module=module, fresh=None, replaced=replaced)

    def changed(self, changes: Mapping[str, Change]) -> ModuleBackend:
        """A copy of the module, with other numbers in some parameters."""
        copied = replace(self, module=self.fresh() if self.fresh else copy.deepcopy(self.module), fresh=None)
        for parameter, numbers in copied._numbers(changes):
            parameter.data = numbers
        return copied

    def with_tokenizer(self, tokenizer: Path) -> ModuleBackend:
        """The same module with another tokenizer."""
        return replace(self, tokenizer=tokenizer)

    def fed_with(self, signature: Signature, feed: Feed | None = None) -> ModuleBackend:
        """The same module with other inputs."""
        signature = replace(signature, autocast=self.rebuild.get("autocast"))
        return replace(self, signature=signature if signature.outputs else with_outputs(signature, self.module, feed))

    @cached_property
    def _jobs(self) -> int:
        return jobs_for(self.module)

    @property
    def jobs(self) -> int:
        """A thread for each core, each with a replica of the module, as far as there is memory for a batch in each."""
        return self._jobs

    def outputs(self, feed: Feed) -> Outputs:
        """One forward pass in evaluation mode."""
        assert isinstance(self.signature, Signature)
        return _forward(self.signature, self.module, feed)

    def outputs_of(self, feeds: Sequence[Feed]) -> Iterator[Outputs]:
        """Forward passes in evaluation mode."""
        assert isinstance(self.signature, Signature)
        signature, replicas = self.signature, self._replicas()

        def run(feed: Feed) -> Outputs:
            with replicas.one() as module:
                return _forward(signature, module, feed)

        with threads(self.jobs) as pool:
            yield from pool.map(run, feeds)

    def _replicas(self) -> Spares[nn.Module]:
        """One module for each thread that asks; where it cannot be copied there is one thread."""
        return Spares(partial(replica, self.module) if self.jobs > 1 else lambda: self.module)

    def run(self, feed: Feed) -> NDArray[Any]:
        """The output that the model is about."""
        assert isinstance(self.signature, Signature)
        return self.outputs(feed)[self.signature.output]

    def reference(self) -> Callable[[Feed], Outputs]:
        """The module in float32: an exported graph does not round as a half-precision module does at every step."""
        assert isinstance(self.signature, Signature)
        return partial(_forward, in_float32(self.signature), module_in_float32(self.module))

    def otherwise_rounded(self) -> Callable[[Feed], Outputs]:
        """The module in float64."""
        assert isinstance(self.signature, Signature)
        return partial(_forward, with_floats(self.signature, "float64"), copy.deepcopy(self.module).double())

    @contextmanager
    def watching(self, sides: Mapping[str, Side], device: str = "cpu") -> Iterator[Watch]:
        """Hooks on every layer of the named weights, for as long as the block lasts."""
        assert isinstance(self.signature, Signature)
        weights, signature = [self._by_name[name] for name in sides], self.signature
        if device != "cpu":
            with (
                _moved(self.module, device),
                watching(
                    self.module, signature, weights, sides, partial(_called_on, signature, self.module, device)
                ) as watch,
            ):
                yield watch
            return
        with ExitStack() as stack:
            entering = Lock()

            def hooked() -> Watch:
                module = replica(self.module) if self.jobs > 1 else self.module
                with entering:
                    return stack.enter_context(watching(module, signature, weights, sides))

            replicas = Spares(hooked)

            def run(feed: Feed, observe: Observe) -> None:
                with replicas.one() as watch:
                    watch(feed, observe)

            yield run

    def swapped(self, changes: Mapping[str, Change]) -> AbstractContextManager[None]:
        """The parameters hold other numbers inside the block."""
        return swapped(self._numbers(changes))

    def _numbers(self, changes: Mapping[str, Change]) -> list[tuple[nn.Parameter, Tensor]]:
        return numbers_of(self.module, self._by_name, changes)

    @contextmanager
    def trials(
        self, feeds: Sequence[Feed], base: Mapping[str, Change] | None = None
    ) -> Iterator[Callable[[Mapping[str, Change]], list[Outputs]]]:
        """Blocks before the first change are run once for all trials that follow each other."""
        assert isinstance(self.signature, Signature)
        with self.swapped(base or {}), threads(self.jobs) as pool:
            prefix = Prefix(self.module, self.signature, feeds, self.jobs)

            def run(changes: Mapping[str, Change]) -> list[Outputs]:
                places = [layer.name for name in changes for layer in self._by_name[name].layers]
                prefix.advance(min(map(prefix.block_of, places), default=0))
                with self.swapped(changes):
                    return list(pool.map(lambda index: _arrays(prefix.run(index)), range(len(feeds))))

            yield run

    def curvature(self, feeds: Sequence[Feed], names: Sequence[str]) -> Mapping[str, Matrix]:
        """By backward passes; empty for what has no gradients (an exported program)."""
        weights = [w for w in self.weights if w.name in names and (w.is_linear or w.is_table)]
        if not isinstance(self.signature, Signature) or self.rebuild["kind"] == "program":
            return {}
        return output_curvature(self.module, self.signature, weights, feeds, self.jobs)

    def paired(self, small: ModuleBackend, fit: Sequence[Feed], judge: Sequence[Feed]) -> ModulePair | None:
        """This module beside a compressed one; None if they cannot be run."""
        if not isinstance(self.signature, Signature) or not fit:
            return None
        return ModulePair(self.module, small.module, self.signature, fit, judge, min(self.jobs, small.jobs))

    def reloaded(self, folder: Path) -> ModuleBackend:
        """The saved module as a user will load it, checked tensor for tensor; itself, if it takes code to build."""
        if self.rebuild["kind"] not in {"huggingface", "program", "arch"}:
            return self
        loaded = load_stored(folder, self.rebuild.get("arch"))
        assert isinstance(loaded, nn.Module)
        if self.rebuild["kind"] != "program":
            # A program is traced anew when it is saved, under other names; its outputs are compared with ONNX all the
            # same.
            check_same(folder, self.module, loaded)
        return replace(self, module=loaded)

    def saved_in(self, run: Path, replacements: Callable[[], Mapping[str, Replacement]]) -> ModuleBackend:
        """The module as `lowrank.load` gives it; what takes code to build is built from this dense module.

        Raises:
            ArtifactError: if the folder holds no model, or one that differs from what was made.
        """
        dense = self.module
        takes_code = self.rebuild["kind"] in ("module", "arch")
        loaded = load_stored(run, (lambda: copy.deepcopy(dense)) if takes_code else None)
        assert isinstance(loaded, nn.Module)
        folder = run / "model" if (run / "model").is_dir() else run
        record = read_json(folder / RECORD_FILE, "model")
        return replace(self, module=loaded, fresh=None, replaced=record["replaced"])

    def without_pivots(self) -> ModuleBackend:
        """A copy of the module, if it has pivots.

        Raises:
            ExportError: if it has, and is an exported program, whose layers cannot be changed.
        """
        if self.rebuild["kind"] == "program":
            if all(structure_named(record["structure"]).can_round for record in self.replaced.values()):
                return self
            raise ExportError(
                "an exported program keeps its pivoted factors, which do not bear few bits; leave them out with "
                "--structures two_factor, or give the model as code"
            )
        module = without_pivoted_layers(self.module)
        return self if module is self.module else replace(self, module=module, fresh=None)

    def write_onnx(self, path: Path, opset: int | None = None) -> None:
        """Trace the module in float32, and write the graph."""
        if isinstance(self.signature, str):
            raise not_exported(self.source, self.signature)
        export_onnx(self.module, self.signature, path, opset or OPSET)

    def check_with_past(self) -> None:
        """Look for the cache of a causal language model of transformers."""
        cache_shapes(self.module)

    def write_with_past(self, path: Path, opset: int | None = None) -> None:
        """Trace a causal language model of transformers with its cache, in float32, and write the graph."""
        export_with_past(self.module, path, opset or OPSET)

    def save(self, folder: Path) -> None:
        """Weights as safetensors, what was replaced as JSON, and the model's other files copied along."""
        copy_extras(self.extras, self.config_file, folder)
        write_module(self.module, self.signature, self.rebuild, self.replaced, folder)


@contextmanager
def _moved(module: nn.Module, device: str) -> Iterator[None]:
    """A module is on a device inside the block."""
    module.to(device)
    try:
        yield
    finally:
        module.to("cpu")


def _called_on(signature: Signature, module: nn.Module, device: str, feed: Feed) -> None:
    call(signature, module, {name: t.to(device) for name, t in as_tensors(signature, feed).items()})


def _forward(signature: Signature, module: nn.Module, feed: Feed) -> Outputs:
    with torch.no_grad():
        return _arrays(call(signature, module, feed))


def _arrays(outputs: Mapping[str, Tensor]) -> Outputs:
    return {name: as_array(output) for name, output in outputs.items()}


def as_array(output: Tensor) -> NDArray[Any]:
    """An output as an array of float32; of float64 if it is that, or holds integers."""
    output = output.detach().cpu()
    wide = output.dtype in (torch.float64, torch.int64, torch.int32)
    return output.double().numpy() if wide else output.float().numpy()
