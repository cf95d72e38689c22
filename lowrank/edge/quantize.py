"""Rounding a graph's weights to fewer bits: factors are balanced first, and errors are weighted by the data."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.base import Change, signature_of
from lowrank.backends.inputs import Feed, Signature, batch_size, spread
from lowrank.backends.moment_sums import sum_moments
from lowrank.backends.onnx.backend import OnnxBackend
from lowrank.backends.onnx.describe import Use
from lowrank.backends.onnx.passes.store_once import store_once
from lowrank.backends.onnx.runtime import Runner
from lowrank.backends.onnx.save import load_whole, save_model
from lowrank.backends.onnx.sites import attribute
from lowrank.backends.onnx.values import values_of
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.listing import listed
from lowrank.core.rounding.chain import rounded_chain
from lowrank.core.rounding.codes import Codes, even_latents, refitted_left
from lowrank.core.rounding.formats import FORMATS, LEAST, Format, Stored, stored_as
from lowrank.core.rounding.grid import codes_on_grid
from lowrank.core.rounding.ranges import Range, bounds_of, found_ranges, range_of
from lowrank.core.truncation.directions import directions
from lowrank.core.truncation.gram import Gram
from lowrank.core.weight import Weight
from lowrank.edge.half import store_in_half
from lowrank.edge.integer import CONTRIB, place_lookup, place_product
from lowrank.edge.products import EachRun, Fixed, Inputs
from lowrank.edge.target import Target
from lowrank.errors import ExportError

INTEGERS, FOURS = 11, 13
"""The operator sets that DynamicQuantizeLinear came with, and a Split into parts that are given."""
FEWEST = 32
"""Samples that ranges are fixed on, at least."""
RANGED = 4096
"""Tokens, about, that ranges are found on: more of them change no score."""
MOMENTS = 1 << 30
"""Bytes of moments in memory at a time."""


def quantize_file(
    path: Path,
    target: Target,
    signature: Signature,
    feeds: Sequence[Feed] = (),
    plain: bool = False,
    stored: Mapping[str, Stored] | None = None,
) -> list[str]:
    """Store the weights of a file in fewer bits, in place.

    Args:
        path: a graph of standard operators.
        target: whose type is not that of floating numbers. `float16` only stores in fewer bits; the others also compute
            so. `mixed` is as `stored` says, and eight bits for what it does not name.
        signature: how the graph is fed.
        feeds: calibration data; without it numbers are rounded to the nearest.
        plain: only round: no even latents, no refit, nothing made up for, and any range of what products read where
            that is fixed. For comparison, for sizes and times.
        stored: how each weight is, by the names of the model that was exported.

    Returns:
        Remarks on what stayed as it was.

    Raises:
        ExportError: if the graph's operator set is too old, or there are too few data for fixed ranges.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model, dtype = load_whole(path), target.dtype
    for value in list(model.graph.initializers.values()):
        # Nobody can give other numbers for a weight that is in another type now.
        if value in model.graph.inputs:
            model.graph.inputs.remove(value)
    if dtype == "float16":
        notes = _in_half(model)
    else:
        opset, least = model.opset_imports.get("", 0), INTEGERS if dtype in ("int8", "nbits4") else FOURS
        if opset < least:
            raise ExportError(
                f"the graph is of operator set {opset}, and what {dtype} is made of came with {least}; export the "
                "model with a later one, or use " + ("--quantize int8" if opset >= INTEGERS else "--quantize none")
            )
        backend = OnnxBackend(model, {"kind": "onnx"}, signature, path.parent, tried=True)
        if target.is_fixed and not plain:
            check_enough(feeds)
        quantizer = _Quantizer(backend, target, stored or {}, feeds, plain)
        notes = quantizer.run()
        if quantizer.halves:
            notes += _in_half(model, quantizer.halves)
    RemoveUnusedNodesPass()(model)
    store_once(model)
    if any(node.domain == CONTRIB for node in model.graph):
        model.opset_imports.setdefault(CONTRIB, 1)
    for node in model.graph.all_nodes():
        # Where each node came from takes more bytes than a small model's numbers, and is only needed to compress again.
        node.metadata_props.clear()
    save_model(model, path)
    return notes


def check_enough(feeds: Sequence[Feed]) -> None:
    """Check that there are data enough to fix ranges on.

    Raises:
        ExportError: with how many samples are needed.
    """
    samples = sum(batch_size(feed) for feed in feeds)
    if samples < FEWEST:
        raise ExportError(
            f"--profile qdq fixes the ranges of what is multiplied on calibration data, of which it needs {FEWEST} "
            f"samples, and there are {samples}; give more with --calib, or use --profile portable, which has none"
        )


def _in_half(model: Any, only: Collection[str] | None = None) -> list[str]:
    left = store_in_half(model, only)
    return [f"{', '.join(left)}: beyond the range of float16, so kept in float32"] if left else []


@dataclass(eq=False)
class _Quantizer:
    backend: OnnxBackend
    target: Target
    stored: Mapping[str, Stored]
    feeds: Sequence[Feed]
    plain: bool
    halves: set[str] = field(default_factory=set[str])
    """Names of initializers that are to be stored in sixteen bits."""
    chosen: dict[str, tuple[Codes, tuple[Codes, Codes] | None]] = field(
        default_factory=dict[str, tuple[Codes, tuple[Codes, Codes] | None]]
    )
    """Of each weight its codes, and those of two factors beside it."""

    def run(self) -> list[str]:
        """Round every weight that can be, in the order of the graph."""
        weights = [w for w in self.backend.weights if w.params >= LEAST]
        for weight in weights:
            if self._as(weight).dtype == "float16":
                self.halves.add(str(self.backend.uses(weight.name)[0].site.constant.root.name))
        weights = [w for w in weights if self._as(w).dtype in FORMATS]
        fitting = [w for w in weights if self._fits(w)]
        moments = {} if self.plain else dict(self._moments(fitting))
        by_node = {id(u.site.node): w for w in fitting for u in self.backend.uses(w.name)}
        matrices = {w.name: self.backend.read(w.name) for w in fitting}
        done = set[str]()
        for weight in fitting:
            if weight.name in done:
                continue
            readers = self._readers(weight, by_node)
            if readers and not self.plain:
                self._chain(weight, readers, matrices, moments)
                done |= {reader.name for reader in readers}
            elif self._as(weight).residual:
                self._split(weight, matrices[weight.name], moments.get(weight.name))
            else:
                self.chosen[weight.name] = self._codes(weight, matrices[weight.name], moments.get(weight.name)), None
        inputs = Fixed(self._ranges(fitting)) if self.target.is_fixed else EachRun()
        for weight in fitting:
            self._place(weight, inputs)
        odd = [w for w in weights if w not in fitting]
        if not odd:
            return []
        kinds = sorted({layer.kind for w in odd for layer in w.layers})
        return [f"{len(odd)} weights ({', '.join(kinds)}) stay as they are: {listed([w.name for w in odd])}"]

    def _as(self, weight: Weight) -> Stored:
        return stored_as(weight.name, self.stored) if self.target.dtype == "mixed" else Stored(self.target.dtype)

    def _fits(self, weight: Weight) -> bool:
        """Whether every layer of a weight has an operator for codes."""
        uses = self.backend.uses(weight.name)
        table = any(use.site.kind == "lookup" for use in uses)
        return all(self._use_fits(use, table) for use in uses)

    def _use_fits(self, use: Use, table: bool) -> bool:
        node = use.site.node
        if node.graph is not self.backend.model.graph or use.site.constant.tensor.dtype.name != "FLOAT":
            return False
        if use.site.kind == "lookup":
            return node.op_type == "Gather" and not use.transposed
        scaled = attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0
        flat = node.op_type == "MatMul" or (node.op_type == "Gemm" and not scaled and not attribute(node, "transA", 0))
        return flat and use.site.kind == "linear" and use.site.at == 1 and use.transposed == table

    def _readers(self, weight: Weight, by_node: Mapping[int, Weight]) -> list[Weight]:
        """The weights that alone read what a weight gives, wherever it is applied, and read nothing else: second
        factors; empty if anything else reads it."""
        uses = self.backend.uses(weight.name)
        readers: dict[str, Weight] = {}
        reads = 0
        for use in uses:
            node: Any = use.site.node
            output = node.outputs[0]
            if node.op_type == "Gemm" or output.is_graph_output() or use.transposed != uses[0].transposed:
                return []
            for read in output.uses():
                reader = by_node.get(id(read.node)) if read.idx == 0 and read.node.op_type == "MatMul" else None
                if reader is None:
                    return []
                readers[reader.name] = reader
                reads += 1
        return list(readers.values()) if reads == sum(len(self.backend.uses(name)) for name in readers) else []

    def _moments(self, weights: Sequence[Weight]) -> Iterator[tuple[str, Matrix]]:
        """`E[x x']` of what each product reads, wherever it is applied; one for all that read the same values."""
        by_values: dict[tuple[str, ...], list[Weight]] = {}
        for weight in weights:
            sites = [use.site for use in self.backend.uses(weight.name)]
            if all(site.kind == "linear" for site in sites):
                by_values.setdefault(tuple(site.vectors.name for site in sites), []).append(weight)
        waiting = list(by_values.values()) if self.feeds else []
        while waiting:
            now, size = list[list[Weight]](), 0
            while waiting and (not now or size + 8 * waiting[0][0].cols ** 2 <= MOMENTS):
                size += 8 * waiting[0][0].cols ** 2
                now.append(waiting.pop(0))
            grams: dict[str, Gram] = {}

            zeros = {group[0].name: Gram.zeros(group[0], "input") for group in now}
            with self.backend.watching(dict.fromkeys(zeros, "input")) as watch:
                grams = sum_moments(zeros, self.feeds, watch, self.backend.jobs)
            for group in now:
                gram = grams[group[0].name]
                if gram.tokens:
                    yield from ((weight.name, gram.moment / gram.tokens) for weight in group)

    def _format(self, weight: Weight) -> Format:
        return FORMATS[self._as(weight).dtype]

    def _is_table(self, weight: Weight) -> bool:
        return self.backend.uses(weight.name)[0].site.kind == "lookup"

    def _on_grid(self, weight: Weight, matrix: Matrix) -> Codes | None:
        """The codes of numbers that were trained in their format."""
        return codes_on_grid(matrix.T if self._is_table(weight) else matrix, self._format(weight))

    def _codes(self, weight: Weight, matrix: Matrix, moment: Matrix | None) -> Codes:
        table, known = self._is_table(weight), self._on_grid(weight, matrix)
        return known or self._format(weight).codes(matrix.T if table else matrix, None if table else moment)

    def _chain(
        self, first: Weight, readers: Sequence[Weight], matrices: Mapping[str, Matrix], moments: Mapping[str, Matrix]
    ) -> None:
        """Two factors, the second one perhaps of several weights."""
        known = [self._on_grid(weight, matrices[weight.name]) for weight in (first, *readers)]
        found = [codes for codes in known if codes is not None]
        if len(found) < len(known):
            lefts, forms = [matrices[r.name] for r in readers], [self._format(r) for r in readers]
            right, moment = matrices[first.name], moments.get(first.name)
            codes, others = rounded_chain(lefts, right, forms, self._format(first), moment, self._is_table(first))
            found = [codes, *others]
        for weight, each in zip((first, *readers), found, strict=True):
            self.chosen[weight.name] = each, None

    def _split(self, weight: Weight, matrix: Matrix, moment: Matrix | None) -> None:
        """`W = Q + A B`: what is largest of a matrix as two factors of eight bits, and the rest, which has less to be
        rounded, in few bits (after SVDQuant, ICLR 2025)."""
        first = directions(matrix, name=weight.name).truncate(matrix, self._as(weight).residual)
        pair, eight = even_latents(first, moment), FORMATS["int8"]
        right = eight.codes(np.asarray(pair.right, np.float64), moment)
        left = eight.codes(refitted_left(pair, right.matrix(), moment))
        rest = self._codes(weight, matrix - left.matrix() @ right.matrix(), moment)
        self.chosen[weight.name] = rest, (right, left)

    def _ranges(self, weights: Sequence[Weight]) -> dict[str, Range]:
        """Of what each product reads when all weights are rounded, on the calibration data."""
        costs: dict[str, NDArray[np.float64]] = {}
        numbers: dict[str, Change] = {}
        for weight in weights:
            codes, beside = self.chosen[weight.name]
            turned = codes.matrix().T if self._is_table(weight) else codes.matrix()
            whole = turned if beside is None else turned + beside[1].matrix() @ beside[0].matrix()
            numbers[weight.name] = whole, None
            for use in self.backend.uses(weight.name):
                if use.site.kind == "linear":
                    own = whole.T if use.transposed else whole
                    name = use.site.vectors.name
                    costs[name] = costs.get(name, 0.0) + np.square(own).sum(0)
        if self.plain:
            return dict.fromkeys(costs, range_of(-1.0, 1.0, self.target.is_signed))
        rounded = self.backend.changed(numbers)
        signature, names = signature_of(rounded), sorted(costs)
        runner = Runner(rounded.model, rounded.folder, extra=names)
        feeds = spread(self.feeds, RANGED)
        bounds = bounds_of(values_of(runner, signature, names, feeds))
        return found_ranges(values_of(runner, signature, names, feeds), bounds, costs, self.target.is_signed)

    def _place(self, weight: Weight, inputs: Inputs) -> None:
        codes, beside = self.chosen[weight.name]
        table = None
        # A table first: a head that is tied to it reads its codes.
        for use in self.backend.uses(weight.name):
            if use.site.kind == "lookup":
                table = place_lookup(use.site, codes, weight.name)
            else:
                place_product(use.site, codes, weight.name, inputs, table, beside)
