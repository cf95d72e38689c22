"""Published formulas on this project's parts, for comparison at the same budget: metrics and allocations, no training.

Each is made from its paper's mathematics. `fwsvd`, `asvd`, `svd_llm` and `plain` give every weight the same keep ratio;
`svd_llm_v2` and `lems` allocate ranks between weights; `modegpt` narrows heads and feed-forward blocks. None gets
labels: where a paper takes gradients of a labelled loss, the model's own output is probed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from lowrank.backends.torch.curvature import probe
from lowrank.backends.torch.hooks import first_input
from lowrank.backends.torch.inputs import call, mask_of, token_rows
from lowrank.calibrate.collect import collect_grams
from lowrank.calibrate.data import Calibration
from lowrank.calibrate.sensitivity import changes_of, reference_of, some_batches
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.simple import Uniform
from lowrank.core.structures import factorize_option, structure_named
from lowrank.core.structures.base import Replacement
from lowrank.core.structures.two_factor import TwoFactor
from lowrank.core.truncation.factors import Factors
from lowrank.core.weight import Weight
from lowrank.pipeline.analyzing import analyze_couplings, analyze_weights
from lowrank.pipeline.plans import factorize
from lowrank.progress import silent

Compressor = Callable[[float], Mapping[str, Replacement]]
"""From a keep ratio to what replaces each weight."""

SAMPLES = 512
"""Of which gradients are taken one by one."""


def targeted(backend: Any) -> list[Weight]:
    """What is compressed: projections, no embeddings, no heads."""
    return [w for w in backend.weights if w.role == "projection"]


def seen(calibration: Calibration, *, couplings: bool = False) -> Analysis:
    """An analysis of what the layers see, without anything measured of the model's output."""
    backend: Any = calibration.backend
    weights = targeted(backend)
    names = {w.name for w in weights}
    found = [b for b in backend.couplings if names.issuperset(b.weights)] if couplings else []
    grams = collect_grams(calibration, weights, silent, {n for b in found for n in b.weights})
    return Analysis(
        analyze_weights(backend, weights, grams), couplings=analyze_couplings(backend, found, grams), grams=grams
    )


def uniform(backend: Any, analysis: Analysis) -> Compressor:
    return lambda keep: factorize(backend, analysis, Uniform().select(analysis, Budget.params(keep)))


def plain(calibration: Calibration) -> Compressor:
    """The SVD of the weight, which knows no data."""
    backend = calibration.backend
    return uniform(backend, Analysis(analyze_weights(backend, targeted(backend), {})))


def svd_llm(calibration: Calibration) -> Compressor:
    """The SVD after whitening the inputs (ICLR 2025): least error of each layer's output."""
    return uniform(calibration.backend, seen(calibration))


def rank_of(weight: Weight, keep: float) -> int:
    return max(1, int(keep * weight.rows * weight.cols / (weight.rows + weight.cols)))


def weighted(backend: Any, left: Mapping[str, Any], right: Mapping[str, Any]) -> Compressor:
    """The SVD of `diag(left) W diag(right)`, undone on either side."""

    def compress(keep: float) -> dict[str, Replacement]:
        made: dict[str, Replacement] = {}
        for weight in targeted(backend):
            matrix = backend.read(weight.name)
            rows, cols = (
                np.maximum(s, 1e-6 * s.max())
                for s in (
                    left.get(weight.name, np.ones(weight.rows)),
                    right.get(weight.name, np.ones(weight.cols)),
                )
            )
            u, s, v = np.linalg.svd(rows[:, None] * matrix * cols, full_matrices=False)
            r = rank_of(weight, keep)
            factors = Factors(u[:, :r] * s[:r] / rows[:, None], v[:r] / cols)
            made[weight.name] = Replacement("two_factor", factors)
        return made

    return compress


def fwsvd(calibration: Calibration) -> Compressor:
    """Rows weighted by the root of their Fisher information (ICLR 2022), with the model's own output for a label."""
    backend: Any = calibration.backend
    module, weights = backend.module, targeted(backend)
    parameters = {w.name: module.get_submodule(w.layers[0].name).weight for w in weights}
    fisher = {w.name: np.zeros(w.rows) for w in weights}
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for feed in single(some_batches(calibration, 10**9, fit=True), SAMPLES):
            value = probe(
                call(backend.signature, module, feed)[backend.signature.output], backend.output_kind, generator
            )
            for weight, gradient in zip(weights, torch.autograd.grad(value, list(parameters.values())), strict=True):
                fisher[weight.name] += np.square(weight.view.matrix(gradient.numpy())).sum(1)
    return weighted(backend, {name: np.sqrt(found) for name, found in fisher.items()}, {})


def single(batches: Any, count: int) -> Iterator[dict[str, Any]]:
    """So many single samples, from as many batches as there are."""
    rows = [(i, batch) for batch in batches for i in range(len(next(iter(batch.values()))))]
    for i, batch in rows[:: max(1, len(rows) // count)]:
        yield {name: values[i : i + 1] for name, values in batch.items()}


def asvd(calibration: Calibration) -> Compressor:
    """Columns weighted by the root of their inputs' mean magnitude (2023, alpha 0.5); uniform ranks."""
    backend: Any = calibration.backend
    totals: dict[str, Any] = {}
    mask: Any = None
    handles: list[Any] = []
    for weight in targeted(backend):

        def hook(_: nn.Module, args: Any, kwargs: Any, name: str = weight.name) -> None:
            found = token_rows(first_input(args, kwargs).detach(), mask).abs().double().sum(0).numpy()
            totals[name] = totals.get(name, 0.0) + found

        layer = backend.module.get_submodule(weight.layers[0].name)
        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    for feed in calibration.fit:
        mask = mask_of(feed)
        backend.run(feed)
    for handle in handles:
        handle.remove()
    return weighted(backend, {}, {name: np.sqrt(total / total.mean()) for name, total in totals.items()})


def svd_llm_v2(calibration: Calibration) -> Compressor:
    """Compression ratios inverse to the logarithm of the loss at uniform ranks, among weights of a type (NAACL
    2025)."""
    backend, analysis = calibration.backend, seen(calibration)

    def compress(keep: float) -> dict[str, Replacement]:
        types: dict[str, list[Weight]] = {}
        for weight in targeted(backend):
            types.setdefault(re.sub(r"\d+", "#", weight.name), []).append(weight)
        made: dict[str, Replacement] = {}
        for members in types.values():
            losses = [absolute_loss(analysis, w, rank_of(w, keep)) for w in members]
            # Scaled so that every logarithm is positive.
            shares = [1 / math.log(math.e * loss / min(losses)) for loss in losses]
            for weight, share in zip(members, shares, strict=True):
                cut = min(len(members) * (1 - keep) * share / sum(shares), 0.98)
                rank = min(rank_of(weight, 1 - cut), weight.full_rank)
                made |= TwoFactor().factorize(single_of(analysis, weight.name), rank, analysis, backend)
        return made

    return compress


def absolute_loss(analysis: Analysis, weight: Weight, rank: int) -> float:
    """Squared output error summed over the data."""
    record = analysis[weight.name]
    assert record.activation is not None
    return float(np.square(record.activation.values).sum() * record.activation.tail_energy[rank]) + 1e-30


def single_of(analysis: Analysis, name: str) -> Any:
    return analysis.groups[name]


def lems(calibration: Calibration) -> Compressor:
    """One measurement of each weight at a tenth of its rank, scaled by its error curve and its depth; exact choice of
    ranks (ICML 2026). In the metric of the inputs, with two factors."""
    backend, analysis = calibration.backend, seen(calibration)
    depth = depths(analysis)
    feeds = some_batches(calibration)
    with backend.trials(feeds) as run:
        reference = reference_of(backend, feeds, run({}))
        records = []
        for record in analysis.weights:
            group = single_of(analysis, record.weight.name)
            rank = max(1, record.weight.full_rank // 10)
            made = TwoFactor().factorize(group, rank, analysis, backend)
            lost = reference.loss(run(changes_of(made, analysis))) * depth[record.weight.name]
            records.append(replace(record, measured=((float(record.error_curve[rank]), lost),)))
    analysis = replace(analysis, weights=tuple(records))
    selector = Knapsack(structures=("two_factor",))
    return lambda keep: factorize(backend, analysis, selector.select(analysis, Budget.params(keep)))


def depths(analysis: Analysis) -> dict[str, float]:
    """Early blocks matter more, for what they lose passes through all others: harmonic, from 6 down to about 1."""
    blocks = {r.weight.name: block_of(r.weight.name) for r in analysis.weights}
    return {name: 1 + 5 / (1 + block) for name, block in blocks.items()}


def block_of(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def modegpt(calibration: Calibration) -> Compressor:
    """Narrower heads and fewer neurons, more of them cut in blocks that change their input little (ICLR 2025).

    With this project's modules: channels by the spectrum of the product between query and key too, and neurons by
    forward selection, both at least as good as the paper's. What has no such module gets two factors.
    """
    backend: Any = calibration.backend
    analysis = seen(calibration, couplings=True)
    influence = block_influence(backend, list(some_batches(calibration)), {block_of(w.name) for w in targeted(backend)})

    def compress(keep: float) -> dict[str, Replacement]:
        keeps = layer_keeps(influence, keep)
        made: dict[str, Replacement] = {}
        for coupling in analysis.couplings:
            at = keeps[block_of(coupling.group.weights[0])]
            if coupling.structure in ("product", "neurons"):
                structure = structure_named(coupling.structure)
                rank = max(1, int(at * int(coupling.ranks[-1])))
                made |= factorize_option(structure.at(coupling.group, analysis, rank), analysis, backend)
        for weight in targeted(backend):
            if weight.name not in made:
                rank = rank_of(weight, keeps[block_of(weight.name)])
                made |= TwoFactor().factorize(single_of(analysis, weight.name), rank, analysis, backend)
        return made

    return compress


def layer_keeps(influence: Mapping[int, float], keep: float, temperature: float = 0.1) -> dict[int, float]:
    """Sparsity by a softmax of falling influence, none above 0.95."""
    scores = {i: math.exp(-v / temperature) for i, v in influence.items()}
    cut = {i: len(scores) * (1 - keep) * s / sum(scores.values()) for i, s in scores.items()}
    for _ in range(len(cut)):
        over = sum(max(c - 0.95, 0.0) for c in cut.values())
        free = [i for i, c in cut.items() if c < 0.95]
        cut = {i: min(c, 0.95) + (over / len(free) if i in free else 0.0) for i, c in cut.items()}
    return {i: 1 - min(c, 0.95) for i, c in cut.items()}


def block_influence(backend: Any, feeds: list[Any], blocks: set[int]) -> dict[int, float]:
    """1 - cosine between what enters a block and what leaves it."""
    found: dict[int, list[float]] = {i: [] for i in blocks}
    handles: list[Any] = []
    paths = [
        f"{path}.{i}"
        for path, child in backend.module.named_modules()
        if isinstance(child, nn.ModuleList)
        for i in range(len(child))
    ]
    for path in paths:

        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any, at: int = block_of(path)) -> None:
            x, y = first_input(args, kwargs), output[0] if isinstance(output, tuple) else output
            found[at].append(float(1 - nn.functional.cosine_similarity(x, y, dim=-1).mean()))

        handles.append(backend.module.get_submodule(path).register_forward_hook(hook, with_kwargs=True))
    for feed in feeds:
        backend.run(feed)
    for handle in handles:
        handle.remove()
    return {i: float(np.mean(values)) for i, values in found.items()}


PUBLISHED: dict[str, Callable[[Calibration], Compressor]] = {
    "plain SVD": plain,
    "FWSVD": fwsvd,
    "ASVD": asvd,
    "SVD-LLM": svd_llm,
    "SVD-LLM v2 allocation": svd_llm_v2,
    "LEMS-like allocation": lems,
    "MoDeGPT-like modules": modegpt,
}
