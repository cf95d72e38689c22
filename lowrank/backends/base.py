"""Backend: a model in one format. It names its weights, reads one, takes replacements back, runs, and saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from numpy.typing import NDArray

from lowrank.backends.inputs import NOT_RUN, Feed, Signature
from lowrank.backends.moment_sums import Observe
from lowrank.core.distance import OutputKind
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.gram import Side
from lowrank.core.truncation.refit import Joint
from lowrank.core.weight import Coupling, Skip, Weight
from lowrank.errors import ExportError, UnsupportedModel

Outputs = Mapping[str, NDArray[Any]]
"""What a forward pass gives, by name."""
Change = tuple[Matrix, Vector | None]
"""Other numbers for a weight, and for its layer's bias unless that stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How to build a model whose file does not say, and what it may run."""

    arch: str | None = None
    """`package.module:factory`: a function without arguments that gives the dense `nn.Module`."""
    config: str | None = None
    """A Hugging Face config.json that says how to build the model."""
    tokenizer: str | None = None
    """A tokenizer.json, or a folder with a tokenizer, for models that come without one."""
    lora: str | None = None
    """A folder with an adapter of PEFT that is merged into the model."""
    weights: str | None = None
    """Which weights of a file that holds several: the keys that lead to a mapping, or what their names begin with."""
    unsafe_pickle: bool = False
    """Allow a file to run code of its own while it is read."""

    def provenance(self) -> dict[str, Any]:
        """What must be the same for a second opening to give the same model. Never the permission to unpickle."""
        named = {"config": self.config, "tokenizer": self.tokenizer, "lora": self.lora}
        return {
            "arch": self.arch,
            "weights": self.weights,
            **{key: path and str(Path(path).resolve()) for key, path in named.items()},
        }


def already_compressed(what: str) -> UnsupportedModel:
    """The error of a model that was compressed before; `what` says what file is of it, or what folder holds it."""
    return UnsupportedModel(f"{what} a model that lowrank has compressed already; give the original model instead")


def not_exported(source: Mapping[str, Any], reason: str) -> ExportError:
    """The error of a model that cannot be written as a graph because it cannot be run."""
    remedy = "; give inputs that it runs on as .npz, with --calib" if reason.startswith(NOT_RUN) else ""
    return ExportError(f"{source['path'] or 'the model'} cannot be exported: {reason}{remedy}")


class Paired(Protocol):
    """A dense model and its compressed one, side by side on the same batches."""

    def stages(self, weights: Sequence[Weight]) -> list[list[Weight]]:
        """Weights in the order in which they are applied, those that read the very same numbers together."""
        ...

    def moments(self, stage: Sequence[Weight], factored: Mapping[str, Replacement]) -> dict[str, tuple[Joint, Joint]]:
        """For each weight of a stage the joint moments of the two folds."""
        ...

    def put(self, weight: Weight, replacement: Replacement) -> None:
        """Give a replaced layer new numbers, in the structure that it has."""
        ...

    def bias(self, weight: Weight) -> Vector | None:
        """The bias of a replaced layer, as wide as what it gives."""
        ...


class Backend(Protocol):
    """A model in one format. It never computes a decomposition, and the core never touches what is inside it."""

    @property
    def source(self) -> Mapping[str, Any]:
        """Where the model came from (`path`, `kind`, `fingerprint`, ...)."""
        ...

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every matrix that can be replaced, in the model's order; ties are one weight."""
        ...

    @property
    def couplings(self) -> tuple[Coupling, ...]:
        """Weights that can be narrowed together, or can share a basis."""
        ...

    @property
    def skips(self) -> tuple[Skip, ...]:
        """Every other tensor of two or more dimensions, and why it cannot."""
        ...

    @property
    def params(self) -> int:
        """Numbers in the whole model, shared ones counted once."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors, shared ones counted once."""
        ...

    @property
    def signature(self) -> Signature | str:
        """How it is fed, or the reason why it cannot be run."""
        ...

    @property
    def output_kind(self) -> OutputKind:
        """What the output that the model is about is for, and so how two of them are compared."""
        ...

    @property
    def tokenizer(self) -> Path | None:
        """The folder or the tokenizer.json that makes its inputs from text."""
        ...

    def read(self, name: str) -> Matrix:
        """One weight as a rows x cols float64 matrix (stack x rows x cols for a stack).

        Raises:
            NonFiniteWeight: if it holds NaN or infinity.
        """
        ...

    def bias(self, name: str) -> Vector | None:
        """The bias of the layer that applies a weight, if it has one that can be changed."""
        ...

    def check_finite(self) -> None:
        """Check that the numbers that running the model needs beside its weights are finite.

        Raises:
            NonFiniteWeight: with the first tensor's name.
        """
        ...

    def rewrite(self, replacements: Mapping[str, Replacement]) -> Self:
        """A new backend whose model has the replacements in the weights' places; this one is unchanged."""
        ...

    def changed(self, changes: Mapping[str, Change]) -> Self:
        """A new backend whose model has other numbers in some weights; this one is unchanged."""
        ...

    def without_pivots(self) -> Self:
        """The same function with two factors or one matrix in the place of pivoted factors, which do not bear few bits;
        this backend itself if it has none.

        Raises:
            ExportError: if it has some, and cannot be changed.
        """
        ...

    def write_onnx(self, path: Path, opset: int | None = None) -> None:
        """Write the model as an ONNX file (and `path.data` beside it, if it is large).

        With standard operators and the model's own numbers; see `edge.graph_file.fit_file` for others. A model that
        came as ONNX keeps the operator set that it has.

        Raises:
            ExportError: if it cannot be traced, or cannot be run at all.
        """
        ...

    def check_with_past(self) -> None:
        """Check that `write_with_past` has something to write, without writing it.

        Raises:
            ExportError: if the model is no causal language model with a cache, or came as ONNX.
        """
        ...

    def write_with_past(self, path: Path, opset: int | None = None) -> None:
        """Write a causal language model as an ONNX file with its key-value cache as inputs and outputs.

        Raises:
            ExportError: if it has none, or came as ONNX, where a graph has the inputs that it has.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the model so that `lowrank.load(folder)` gives it back without the original."""
        ...

    def reloaded(self, folder: Path) -> Self:
        """This model as `save` wrote it to a folder and as a user will load it, checked to be the same.

        Raises:
            ArtifactError: if it is not.
        """
        ...

    def saved_in(self, run: Path, replacements: Callable[[], Mapping[str, Replacement]]) -> Self:
        """The compressed model of a run that was made from this one.

        Args:
            run: its folder, whose `model` is loaded where it holds one.
            replacements: what was put in, for formats where it does not.
        """
        ...

    def fed_with(self, signature: Signature, feed: Feed | None = None) -> Self:
        """The same model with another description of its inputs.

        Args:
            signature: the description; where it names no outputs, they are those that a run shows.
            feed: what is run then; random inputs if not given.
        """
        ...

    @property
    def jobs(self) -> int:
        """On how many batches it can be run at once."""
        ...

    def outputs(self, feed: Feed) -> Outputs:
        """All outputs of one forward pass, by name and in floating numbers."""
        ...

    def outputs_of(self, feeds: Sequence[Feed]) -> Iterator[Outputs]:
        """The outputs for each of some batches, in their order, of which `jobs` are run at once."""
        ...

    def run(self, feed: Feed) -> NDArray[Any]:
        """The output that the model is about, of one forward pass."""
        ...

    def reference(self) -> Callable[[Feed], Outputs]:
        """What an ONNX file of this model must agree with, in float32, by a way that does not go through the file."""
        ...

    def otherwise_rounded(self) -> Callable[[Feed], Outputs]:
        """The reference with other roundings, to see how much they change: in float64 where the format runs in it."""
        ...

    def watching(
        self, sides: Mapping[str, Side], device: str = "cpu"
    ) -> AbstractContextManager[Callable[[Feed, Observe], None]]:
        """A function that runs the model on a batch and shows the moment that each weight's layers saw there, with the
        weight's name. `jobs` threads may call it at once.

        Args:
            sides: which moment is wanted of each weight, by name.
            device: where it runs, for models of torch.
        """
        ...

    def swapped(self, changes: Mapping[str, Change]) -> AbstractContextManager[None]:
        """Inside the block `run` computes with other numbers in some weights, and in their layers' biases."""
        ...

    def trials(
        self, feeds: Sequence[Feed], base: Mapping[str, Change] | None = None
    ) -> AbstractContextManager[Callable[[Mapping[str, Change]], list[Outputs]]]:
        """A function from changes to the outputs for all feeds, for many trials in a row.

        Args:
            feeds: what is run.
            base: changes that hold in all trials; they may be undone in one by naming them again.
        """
        ...

    def paired(self, small: Self, fit: Sequence[Feed], judge: Sequence[Feed]) -> Paired | None:
        """This model beside a compressed one; None if the format has no way to refit.

        Args:
            small: what `rewrite` gave; its numbers are changed.
            fit: batches for the moments that choose.
            judge: batches for those that judge.
        """
        ...

    def curvature(self, feeds: Sequence[Feed], names: Sequence[str]) -> Mapping[str, Matrix]:
        """Second moments of gradients of the output with respect to what linear layers give; empty where there are
        none to be had."""
        ...


def signature_of(backend: Backend) -> Signature:
    """How to feed a model that is known to run."""
    assert isinstance(backend.signature, Signature)
    return backend.signature
