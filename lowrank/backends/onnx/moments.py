"""Moments of the inputs or outputs of a graph's weights, from runs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.inputs import MASK, Feed, Signature, as_taken, batch_size
from lowrank.backends.moment_sums import Observe
from lowrank.backends.onnx.describe import Use
from lowrank.backends.onnx.runtime import Runner
from lowrank.backends.onnx.sites import Site, attribute
from lowrank.core.truncation.gram import Gram, Side, Tokens, moment_of
from lowrank.core.weight import Weight

BYTES = 64 << 20
"""Activations that one run may give back; a batch that would give more is run in parts."""

Array = NDArray[Any]


def watched(uses: Sequence[Use], graph: Any) -> list[Use]:
    """The uses whose inputs decide a weight's truncation: those of a table, else those that read it as it is.

    What happens inside subgraphs and functions cannot be shown to a caller.
    """
    table = any(use.site.kind == "lookup" for use in uses)
    return [
        use
        for use in uses
        if not use.transposed
        and use.site.node.graph is graph
        and (use.site.kind == "lookup" or not table)
        and use.site.kind != "experts"
    ]


def values_for(use: Use, side: Side) -> list[str]:
    """The values whose numbers the moment of one use is made from."""
    site = use.site
    if site.kind == "lookup":
        return [site.node.inputs[1].name] if side == "input" else [site.node.outputs[0].name]
    if side == "output" and site.node.op_type in ("MatMul", "Conv"):
        return [site.vectors.name, site.node.outputs[0].name]
    return [site.vectors.name]


class MomentRunner:
    """Runs feeds through a session with extra outputs, and turns those into Grams."""

    def __init__(
        self,
        runner: Runner,
        uses: Sequence[tuple[Weight, Use]],
        signature: Signature | str,
        sides: Mapping[str, Side],
    ) -> None:
        self.runner, self.uses, self.sides = runner, uses, sides
        inputs = signature.inputs if isinstance(signature, Signature) else ()
        self.by_rows = all(i.dims[:1] == ("batch",) for i in inputs)
        self.size = signature.fixed_batch if isinstance(signature, Signature) else None
        names = {name for weight, use in uses for name in values_for(use, sides[weight.name])}
        self.names = sorted(name for name in names if name in runner.outputs)

    def __call__(self, feed: Feed, observe: Observe) -> None:
        """Run one feed, in as many parts as memory asks for, and show the Gram of each weight in each."""
        start, rows, step = 0, self._rows(feed), 1
        while start < rows:
            part = {name: array[start : start + step] for name, array in feed.items()} if rows > 1 else feed
            start += step
            size = sum(self._run(each, observe) for each in as_taken([part], self.size))
            # What one row gives is known after the first.
            step = max(1, BYTES * step // size) if size else rows

    def _rows(self, feed: Feed) -> int:
        """How many samples a feed has that can be run apart."""
        return batch_size(feed) if self.by_rows and self.size is None else 1

    def _run(self, feed: Feed, observe: Observe) -> int:
        """Run a part and show its Grams; the bytes of the activations that it gave."""
        outputs = dict(zip(self.names, self.runner(feed, self.names), strict=True)) if self.names else {}
        self._show({**feed, **outputs}, feed.get(MASK), observe)
        return sum(array.nbytes for array in outputs.values())

    def _show(self, values: Mapping[str, Array], mask: Array | None, observe: Observe) -> None:
        shared: dict[tuple[str, str], Gram | Tokens] = {}
        for weight, use in self.uses:
            side = self.sides[weight.name]
            if use.site.kind == "linear" and side == "input":
                # Layers that read one value, such as query, key and value, have one moment.
                key = (use.site.vectors.name, _axis(use.site))
                if key not in shared:
                    shared[key] = _of_linear(use.site, weight, side, values, mask)
                observe(weight.name, shared[key])
            elif use.site.kind == "linear":
                observe(weight.name, _of_linear(use.site, weight, side, values, mask))
            elif use.site.kind == "lookup":
                observe(weight.name, _of_lookup(use.site, weight, side, values, mask))
            else:
                observe(weight.name, _of_conv(use.site, weight, side, values))


def _axis(site: Site) -> str:
    """How a site's tokens lie in the value that it sees."""
    if site.node.op_type == "Einsum":
        return str(attribute(site.node, "equation", ""))
    turned = site.node.op_type == "Gemm" and attribute(site.node, "transA", 0)
    return "columns" if turned or site.at == 0 else "rows"


def _tokens(site: Site, array: Array, mask: Array | None) -> Array:
    """Tokens x width of what a linear site sees, in float64, without those that the mask leaves out."""
    axis = _axis(site)
    if site.node.op_type == "Einsum":
        terms = axis.replace(" ", "").split("->")[0].split(",")
        ours, other = terms[site.at], terms[1 - site.at]
        # In the order of the constant's axes, as the matrix has them.
        summed = [c for c in ours if c in other]
        free = [c for c in other if c not in summed]
        order = [other.index(c) for c in (*free, *summed)]
        array = array.transpose(order).reshape(*(array.shape[other.index(c)] for c in free), -1)
    elif axis == "columns":
        array = array.swapaxes(-1, -2)
    return token_rows(array, mask)


def token_rows(array: Array, mask: Array | None) -> Array:
    """Tokens x width in float64, without those that a mask leaves out."""
    width = array.shape[-1]
    if mask is not None and array.shape[:-1] == mask.shape:
        return array[mask != 0].astype(np.float64)
    flat = array.reshape(-1, width)
    if mask is not None and len(flat) == mask.size and array.ndim == 2:
        # Exporters that know no product of three axes lay the batch and the sequence out in one.
        flat = flat[mask.reshape(-1) != 0]
    return flat.astype(np.float64)


def _energy(rows: Array) -> float:
    finite = np.isfinite(rows).all(axis=1)
    return float(np.square(rows if finite.all() else rows[finite]).sum())


def _of_linear(
    site: Site, weight: Weight, side: Side, values: Mapping[str, Array], mask: Array | None
) -> Gram | Tokens:
    tokens = _tokens(site, values[site.vectors.name], mask)
    if side == "input":
        return moment_of("input", tokens)
    if site.node.op_type == "MatMul":
        given = values[site.node.outputs[0].name]
        product = token_rows(given if site.at == 1 else given.swapaxes(-1, -2), mask)
    else:
        # Its output has a bias in it, or other axes.
        product = tokens @ np.asarray(site.matrix(), np.float64).T
    # Of the tokens that the moment is of: an output can overflow where the input did not.
    return moment_of("output", product, _energy(tokens[np.isfinite(product).all(axis=1)]))


def _of_lookup(
    site: Site, weight: Weight, side: Side, values: Mapping[str, Array], mask: Array | None
) -> Gram | Tokens:
    """A lookup is a product with a one-hot vector, whose squared norm is 1."""
    if side == "output":
        rows = token_rows(values[site.node.outputs[0].name], mask)
        return moment_of("output", rows, float(len(rows)))
    ids = values[site.node.inputs[1].name]
    ids = ids[mask != 0] if mask is not None and ids.shape == mask.shape else ids.reshape(-1)
    counts = np.bincount(np.where(ids < 0, ids + weight.cols, ids), minlength=weight.cols).astype(np.float64)
    return Gram("input", np.diag(counts), ids.size, float(ids.size))


def _of_conv(site: Site, weight: Weight, side: Side, values: Mapping[str, Array]) -> Gram | Tokens:
    """Every position is a token; its input is the patch under the kernel."""
    images = values[site.node.inputs[0].name]
    patches = _patches(site, images)
    energy = _energy(patches)
    stack = weight.stack
    if side == "input":
        rows = patches.reshape(len(patches), stack, weight.cols)
    else:
        given = values[site.node.outputs[0].name]
        bias = site.node.inputs[2] if len(site.node.inputs) > 2 else None
        product = given.reshape(len(given), given.shape[1], -1).swapaxes(1, 2).reshape(-1, given.shape[1])
        if bias is not None:
            product = product - bias.const_value.numpy() if bias.const_value is not None else product
        rows = product.astype(np.float64).reshape(len(product), stack, weight.rows)
    if stack == 1:
        return moment_of(side, rows[:, 0], energy)
    # A position that is not finite in one group counts in none: all have one number of tokens.
    finite = rows[np.isfinite(rows).all(axis=(1, 2))]
    moments = np.einsum("tsi,tsj->sij", finite, finite)
    return Gram(side, moments, len(finite), energy, len(rows) - len(finite))


def _patches(site: Site, images: Array) -> Array:
    """Positions x (channels kernel) of what a convolution sees, by its own strides, dilations and padding."""
    kernel = site.constant.shape[2:]
    axes = len(kernel)
    strides = list(attribute(site.node, "strides", [1] * axes))
    dilations = list(attribute(site.node, "dilations", [1] * axes))
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    pads = _pads(site, images.shape[2:], spans, strides)
    padded = np.pad(images.astype(np.float64), [(0, 0), (0, 0), *pads])
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + axes)))
    steps = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    inside = (Ellipsis, *(slice(None, None, d) for d in dilations))
    windows = windows[steps][inside]
    order = (0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
    moved = windows.transpose(order)
    return moved.reshape(int(np.prod(moved.shape[: 1 + axes])), -1)


def _pads(site: Site, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    mode = attribute(site.node, "auto_pad", "NOTSET")
    axes = len(spans)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(sizes, spans, strides, strict=True)]
        halves = [t // 2 for t in totals]
        if mode == "SAME_UPPER":
            return [(h, t - h) for h, t in zip(halves, totals, strict=True)]
        return [(t - h, h) for h, t in zip(halves, totals, strict=True)]
    given = list(attribute(site.node, "pads", [0] * (2 * axes)))
    return [(given[i], given[i + axes]) for i in range(axes)] if mode == "NOTSET" else [(0, 0)] * axes
