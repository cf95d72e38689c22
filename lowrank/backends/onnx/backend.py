"""OnnxBackend: a graph that is read, run and rewritten without torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lowrank.artifacts.files import RECORD_FILE, write_json
from lowrank.backends.base import Change, Outputs, not_exported
from lowrank.backends.beside import read_beside
from lowrank.backends.finite import finite
from lowrank.backends.inputs import Feed, Signature, as_taken
from lowrank.backends.memory import batches_at_once
from lowrank.backends.onnx.constants import constants_of, tensor_of
from lowrank.backends.onnx.describe import Described, Use, describe
from lowrank.backends.onnx.joint_moments import OnnxPair
from lowrank.backends.onnx.moments import MomentRunner, values_for, watched
from lowrank.backends.onnx.passes.store_once import store_once
from lowrank.backends.onnx.rewrite import replace_weight
from lowrank.backends.onnx.runtime import Runner
from lowrank.backends.onnx.save import save_model
from lowrank.backends.onnx.signature import outputs_of
from lowrank.backends.onnx.tried import tried, with_kinds
from lowrank.backends.ort_session import floating
from lowrank.core.distance import OutputKind
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.gram import Side
from lowrank.core.truncation.pivoted import Pivoted, without_pivots
from lowrank.core.weight import Skip, Weight
from lowrank.errors import ExportError, NonFiniteWeight
from lowrank.parallel import threads


@dataclass(frozen=True, eq=False)
class OnnxBackend:
    """An ONNX graph, and how it is fed."""

    model: Any
    """An `onnx_ir.Model`."""
    source: Mapping[str, Any]
    declared: Signature | str
    """What the graph says of its inputs, or what calibration data showed."""
    folder: Path
    """The folder of its external tensors."""
    path: Path | None = None
    """The file that holds this graph unchanged; None if there is none."""
    tokenizer: Path | None = None
    external: bool = False
    """Whether its numbers are to be kept beside the graph."""
    tried: bool = False
    """Whether the declared inputs are known to work."""
    dense: OnnxBackend | None = None
    """Of a compressed graph: the one that it was made from."""
    replacements: Mapping[str, Replacement] = field(default_factory=dict)
    replaced: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def _described(self) -> Described:
        return describe(self.model)

    @cached_property
    def _by_name(self) -> dict[str, Weight]:
        return {weight.name: weight for weight in self.weights}

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every constant that a MatMul, Gemm, Conv, Gather or Einsum applies."""
        return self._described.weights

    @property
    def output_kind(self) -> OutputKind:
        """What the output is for, by its name."""
        return self.signature.output_kind if isinstance(self.signature, Signature) else "values"

    @property
    def couplings(self) -> tuple[()]:
        """Empty: in a graph no couplings are looked for."""
        return ()

    @property
    def skips(self) -> tuple[Skip, ...]:
        """Every other floating tensor of two or more dimensions."""
        return self._described.skips

    @property
    def signature(self) -> Signature | str:
        """How it is fed, after a try: a graph does not say how long a sequence its positions allow."""
        return self._tried_signature

    @cached_property
    def _tried_signature(self) -> Signature | str:
        if isinstance(self.declared, str) or self.tried:
            return self.declared
        try:
            found = tried(self.declared, self._runner)
        except ExportError as error:
            return str(error)
        return self._with_kinds(found) if isinstance(found, Signature) else found

    def _with_kinds(self, signature: Signature, feed: Feed | None = None) -> Signature:
        config = read_beside((self.source["path"], self.tokenizer), "config.json")
        return with_kinds(signature, self._runner, config, feed)

    @cached_property
    def _tensors(self) -> list[Any]:
        return [tensor_of(value) for value in constants_of(self.model)]

    @property
    def params(self) -> int:
        """Floating numbers in initializers and constants."""
        return sum(t.size for t in self._tensors if t.dtype.is_floating_point())

    @property
    def nbytes(self) -> int:
        """Bytes of all initializers and constants."""
        return sum(t.nbytes for t in self._tensors)

    def read(self, name: str) -> Matrix:
        """One weight as a float64 matrix, or a stack of them."""
        use = self._described.uses[name][0]
        matrix = np.ascontiguousarray(use.site.matrix(), dtype=np.float64)
        return finite(name, matrix, use.site.constant.shape)

    def bias(self, name: str) -> None:
        """Not known: in a graph it is one more operand of some node."""
        return None

    def check_finite(self) -> None:
        """Look for NaN in every constant that is no weight; infinities are common in masks."""
        taken = {id(use.site.constant.root) for uses in self._described.uses.values() for use in uses}
        for value in constants_of(self.model):
            tensor = tensor_of(value)
            wide = tensor.dtype.is_floating_point() and tensor.dtype.itemsize >= 2
            if id(value) not in taken and wide and np.isnan(tensor.numpy()).any():
                shape = " x ".join(map(str, tensor.shape.numpy()))
                raise NonFiniteWeight(f"{value.name} ({shape}) holds NaN; repair the model")

    def rewrite(self, replacements: Mapping[str, Replacement]) -> OnnxBackend:
        """A backend whose graph has two factors in the weights' places."""
        # What comes next measures the rewritten graph: the session for sensitivities has done its work.
        self.__dict__.pop("_open", None)
        model = self.model.clone()
        # The same walk over the same graph: the copy's uses have the same names.
        described = describe(model)
        replaced: dict[str, dict[str, Any]] = {}
        for name, replacement in replacements.items():
            uses = described.uses[name]
            tensors = replace_weight(model, self._by_name[name], uses, replacement)
            replaced[name] = {
                "structure": replacement.structure,
                "layers": [layer.name for layer in self._by_name[name].layers],
                "rank": replacement.factors.rank,
                "tensors": tensors,
            }
        store_once(model)
        origin = {"dense": self, "replacements": dict(replacements), "replaced": replaced}
        return replace(self, model=model, path=None, declared=self.signature, tried=True, **origin)

    def without_pivots(self) -> OnnxBackend:
        """The dense graph with other factors in the weights' places."""
        if self.dense is None or not any(isinstance(r.factors, Pivoted) for r in self.replacements.values()):
            return self
        kept, whole = dict[str, Replacement](), dict[str, Change]()
        for name, replacement in self.replacements.items():
            factors = replacement.factors
            if not isinstance(factors, Pivoted):
                kept[name] = replacement
                continue
            numbers = without_pivots(np.asarray(factors.product(), np.float64), factors.rank)
            if isinstance(numbers, Factors):
                kept[name] = replace(replacement, factors=numbers)
            else:
                whole[name] = (numbers, None)
        return (self.dense.changed(whole) if whole else self.dense).rewrite(kept)

    def changed(self, changes: Mapping[str, Change]) -> OnnxBackend:
        """A copy of the graph, with other numbers in some constants; biases stay."""
        numbers: dict[int, NDArray[Any]] = {}
        for name, (matrix, _) in changes.items():
            numbers |= self._roots_with(name, matrix)
        return replace(self, model=_with_numbers(self.model, numbers), path=None, declared=self.signature, tried=True)

    def fed_with(self, signature: Signature, feed: Feed | None = None) -> OnnxBackend:
        """The same graph: what it declares of its inputs is all there is, but sizes and ranges may be known better."""
        if not signature.outputs:
            outputs, left_out = outputs_of(self.model)
            signature = self._with_kinds(replace(signature, outputs=outputs, left_out=left_out), feed)
        return replace(self, declared=signature, tried=True)

    @cached_property
    def _runner(self) -> Runner:
        return Runner(self.model, self.folder, self.path)

    @cached_property
    def _swaps(self) -> dict[str, Any]:
        return {}

    @property
    def jobs(self) -> int:
        """A thread for each core, as far as there is memory for a batch in each: they can all be in one session."""
        products = (weight for weight in self.weights if not weight.is_table or len(weight.layers) > 1)
        return batches_at_once(max((max(weight.rows, weight.cols) for weight in products), default=1))

    def outputs_of(self, feeds: Sequence[Feed]) -> Iterator[Outputs]:
        """Forward passes in ONNX Runtime."""
        with threads(self.jobs) as pool:
            yield from pool.map(self.outputs, feeds)

    def outputs(self, feed: Feed) -> Outputs:
        """One forward pass, in ONNX Runtime."""
        assert isinstance(self.signature, Signature)
        names = self.signature.output_names
        if self._swaps:
            return _by_name(names, self._swaps["runner"](feed, names, self._swaps["numbers"]))
        return _by_name(names, self._runner(feed, names))

    def run(self, feed: Feed) -> NDArray[Any]:
        """The output that the model is about."""
        assert isinstance(self.signature, Signature)
        return self.outputs(feed)[self.signature.output]

    def reference(self) -> Callable[[Feed], Outputs]:
        """The dense graph with the factors' products as its weights: the same function by another graph."""
        return self.outputs if self.dense is None else self._with_roots(self.dense, self._products())

    def otherwise_rounded(self) -> Callable[[Feed], Outputs]:
        """The reference with every number of a weight moved to a neighbour of it: graphs do not run in float64."""
        dense, rng = self.dense or self, np.random.default_rng(0)
        roots = {
            key: array for name in dense._by_name for key, array in dense._roots_with(name, dense.read(name)).items()
        }
        roots |= self._products()
        ends = np.array([-np.inf, np.inf])
        moved = {
            key: np.nextafter(array, ends[rng.integers(0, 2, array.shape)].astype(array.dtype))
            for key, array in roots.items()
            if array.dtype in (np.float32, np.float64)
        }
        return self._with_roots(dense, {**roots, **moved})

    def _products(self) -> dict[int, NDArray[Any]]:
        """The products of factors as constants of the dense graph."""
        dense, products = self.dense, dict[int, NDArray[Any]]()
        for name, replacement in self.replacements.items():
            assert dense is not None
            products |= dense._roots_with(name, replacement.dense(dense._by_name[name]))
        return products

    def _with_roots(self, dense: OnnxBackend, numbers: Mapping[int, NDArray[Any]]) -> Callable[[Feed], Outputs]:
        assert isinstance(self.signature, Signature)
        names, runner = self.signature.output_names, Runner(_with_numbers(dense.model, numbers), dense.folder)
        return lambda feed: _by_name(names, runner(feed, names))

    def _roots_with(self, name: str, matrix: Matrix) -> dict[int, NDArray[Any]]:
        """By the id of its value: what each constant of a weight would hold for the weight to be this matrix."""
        numbers: dict[int, NDArray[Any]] = {}
        for use in self._described.uses[name]:
            constant = use.site.constant
            own = matrix.T if use.transposed else matrix
            stored = constant.stored(np.ascontiguousarray(use.site.view.stored_from(own)))
            numbers[id(constant.root)] = np.ascontiguousarray(stored).astype(constant.tensor.dtype.numpy())
        return numbers

    @contextmanager
    def watching(self, sides: Mapping[str, Side], device: str = "cpu") -> Iterator[MomentRunner]:
        """A session with extra outputs on what the weights see."""
        uses: list[tuple[Weight, Use]] = [
            (self._by_name[name], use)
            for name in sides
            for use in watched(self._described.uses[name], self.model.graph)
        ]
        extra = {value for weight, use in uses for value in values_for(use, sides[weight.name])}
        runner = Runner(self.model, self.folder, self.path, extra=sorted(extra))
        yield MomentRunner(runner, uses, self.declared, sides)

    @cached_property
    def _open(self) -> Runner:
        """A session whose weights are inputs, as far as they are initializers of the main graph."""
        return Runner(self.model, self.folder, open_weights=sorted(self._open_names))

    @cached_property
    def _open_names(self) -> set[str]:
        own = self.model.graph.initializers
        roots = (use.site.constant.root for uses in self._described.uses.values() for use in uses)
        return {root.name for root in roots if own.get(root.name) is root}

    @contextmanager
    def swapped(self, changes: Mapping[str, Change]) -> Iterator[None]:
        """Runs with other numbers in some weights: as inputs of one session, or else of a session of their own."""
        numbers: dict[int, NDArray[Any]] = {}
        for name, (matrix, _) in changes.items():
            numbers |= self._roots_with(name, matrix)
        names = {id(self.model.graph.initializers[n]): n for n in self._open_names}
        if set(numbers) <= set(names):
            runner, given = self._open, {names[key]: array for key, array in numbers.items()}
        else:
            runner, given = Runner(_with_numbers(self.model, numbers), self.folder), {}
        self._swaps.update(runner=runner, numbers=given)
        try:
            yield
        finally:
            self._swaps.clear()

    @contextmanager
    def trials(
        self, feeds: Sequence[Feed], base: Mapping[str, Change] | None = None
    ) -> Iterator[Callable[[Mapping[str, Change]], list[Outputs]]]:
        """A function from changes to outputs; it runs the whole graph for each trial."""

        def run(changes: Mapping[str, Change]) -> list[Outputs]:
            with self.swapped({**(base or {}), **changes}):
                return list(self.outputs_of(feeds))

        yield run

    def curvature(self, feeds: Sequence[Feed], names: Sequence[str]) -> dict[str, Matrix]:
        """Empty: ONNX Runtime computes no gradients."""
        return {}

    def uses(self, name: str) -> tuple[Use, ...]:
        """The sites that apply a weight."""
        return self._described.uses[name]

    def paired(self, small: OnnxBackend, fit: Sequence[Feed], judge: Sequence[Feed]) -> OnnxPair | None:
        """Both graphs side by side; the compressed one is made anew as it is refitted."""
        if not fit:
            return None
        uses = self._described.uses
        size = self.signature.fixed_batch if isinstance(self.signature, Signature) else None
        fit, judge = as_taken(fit, size), as_taken(judge, size)
        return OnnxPair(
            self.model, self.folder, uses, lambda factored: self.rewrite(factored).model, fit, judge, self.jobs
        )

    def write_onnx(self, path: Path, opset: int | None = None) -> None:
        """The graph as a file, with its numbers beside it if they were so before or are too many."""
        if isinstance(self.signature, str):
            raise not_exported(self.source, self.signature)
        save_model(self.model, path, beside=self.external)

    def check_with_past(self) -> NoReturn:
        """Not possible: a graph has the inputs that it has."""
        raise ExportError(
            "an ONNX model keeps the inputs that it has, so --with-past cannot be had; compress the torch model that "
            "it was exported from, or a graph that was exported with its cache, without --with-past"
        )

    def write_with_past(self, path: Path, opset: int | None = None) -> NoReturn:
        """Not possible: a graph has the inputs that it has."""
        self.check_with_past()

    def save(self, folder: Path) -> None:
        """What was replaced, and the tokenizer; the graph itself is the run's model.onnx."""
        if self.tokenizer is not None and self.tokenizer.is_file():
            shutil.copyfile(self.tokenizer, folder / "tokenizer.json")
        record = {"rebuild": {"kind": "onnx"}, "replaced": self.replaced, "aliases": {}}
        write_json(folder / RECORD_FILE, "model", record)

    def reloaded(self, folder: Path) -> OnnxBackend:
        """Itself: its file is compared with it when it is measured."""
        return self

    def saved_in(self, run: Path, replacements: Callable[[], Mapping[str, Replacement]]) -> OnnxBackend:
        """The graph with the same factors; the run's file is compared with it when it is measured."""
        return self.rewrite(replacements())


def _with_numbers(model: Any, numbers: Mapping[int, NDArray[Any]]) -> Any:
    """A copy of a model with other numbers in some constants, which are named by the id of their value."""
    import onnx_ir as ir

    copy = model.clone()
    for old, new in zip(constants_of(model), constants_of(copy), strict=True):
        if id(old) not in numbers:
            continue
        tensor = ir.tensor(numbers[id(old)], dtype=tensor_of(old).dtype, name=old.name)
        if new.producer() is None:
            new.const_value = tensor
        else:
            new.producer().attributes["value"] = ir.AttrTensor("value", tensor)
    return copy


def _by_name(names: Sequence[str], outputs: Sequence[NDArray[Any]]) -> Outputs:
    return {name: floating(output) for name, output in zip(names, outputs, strict=True)}
