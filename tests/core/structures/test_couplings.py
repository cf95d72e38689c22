"""Structures of several weights on every architecture: found by experiment, lossless at full width, true below it."""

from __future__ import annotations

import numpy as np
import pytest
from architectures import ARCHITECTURES, analysis_of, with_biases

from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.torch.module import ModuleBackend
from lowrank.calibrate.sensitivity import changes_of
from lowrank.core.analysis import Analysis
from lowrank.core.selection.partition import partitions
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement
from lowrank.core.structures.permute import agree_channel_order
from lowrank.core.truncation.pivoted import Pivoted
from lowrank.core.weight_analysis import analyze_weight

KINDS = {
    "bert": {"query_key", "value_output", "hidden", "same_input"},
    "roberta": {"query_key", "value_output", "hidden", "same_input"},
    "distilbert": {"query_key", "value_output", "hidden", "same_input"},
    "gpt2": {"query_key", "value_output", "hidden", "same_input"},
    "opt": {"query_key", "value_output", "hidden", "same_input"},
    # Rotary positions turn channels in pairs; in Qwen 3 and Gemma 3 norms stand between, too.
    "llama": {"rotary_halves", "value_output", "hidden", "same_input"},
    "qwen3": {"value_output", "hidden", "same_input"},
    "gemma3": {"value_output", "hidden", "same_input"},
    # Its feed-forward blocks hold gate and up in one weight.
    "modernbert": {"rotary_halves", "value_output", "same_input"},
    "t5": {"query_key", "value_output", "hidden", "same_input"},
    "mixtral": {"rotary_halves", "value_output", "same_input"},
    "vit": {"query_key", "value_output", "hidden", "same_input"},
    "deit": {"query_key", "value_output", "hidden", "same_input"},
    "swin": {"query_key", "value_output", "hidden", "same_input"},
    "clip": {"query_key", "value_output", "hidden", "same_input"},
    "whisper": {"query_key", "value_output", "hidden", "same_input"},
    "wav2vec2": {"query_key", "value_output", "hidden", "same_input"},
    "encoder": {"query_key", "value_output", "hidden", "same_input"},
    "mingpt": {"query_key", "value_output", "hidden", "same_input"},
    "resnet": set[str](),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.slow_but("bert", "llama", "gpt2")
def test_couplings(name: str) -> None:
    dense = open_model(with_biases(name))
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    assert {coupling.kind for coupling in dense.couplings} == KINDS[name]
    if not dense.couplings:
        return
    feeds = tuple(dense.signature.example(2, 11) for _ in range(2))
    analysis = analysis_of(dense, dense.couplings, feeds)
    assert {b.structure for b in analysis.couplings} >= (
        {"product", "shared"} if "same_input" in KINDS[name] else set()
    )
    feed = feeds[0]
    whole = dense.run(feed)
    scale = float(np.abs(whole).max())
    for coupling in analysis.couplings:
        structure = structure_named(coupling.structure)
        assert structure is not None
        assert coupling.errors[-1] == pytest.approx(0, abs=1e-9)
        assert (np.diff(coupling.errors) <= 1e-9 + 0.2 * coupling.errors[:-1]).all()
        if coupling.structure != "neurons":
            assert coupling.errors[0] == pytest.approx(1)
        full = dense.rewrite(structure.factorize(coupling.group, int(coupling.ranks[-1]), analysis, dense))
        assert np.abs(full.run(feed) - whole).max() <= 2e-4 * scale, (coupling.group.name, coupling.structure)

    # Every way to split every block, at half its ranks: what a trial shows is what the rewritten model gives.
    for split in {split for splits in partitions(analysis.groups) for split in splits}:
        for coupling in (b for b in analysis.couplings if b.group.name in split):
            structure = structure_named(coupling.structure)
            assert structure is not None
            rank = max(1, int(coupling.ranks[-1]) // 2)
            made = structure.factorize(coupling.group, rank, analysis, dense)
            option = structure.at(coupling.group, analysis, rank)
            small = dense.rewrite(made)
            with dense.trials(feeds) as run:
                tried = run(changes_of(made, analysis))[0][dense.signature.output]
            assert np.abs(small.run(feed) - tried).max() <= 1e-3 * scale, (coupling.group.name, coupling.structure)
            removed = sum(dense.module.get_parameter(n).numel() for n in made) - option.cost
            saved = dense.params - small.params
            biases = sum(len(b) for n in made if (b := dense.bias(n)) is not None)
            assert removed <= saved <= removed + biases


@pytest.mark.slow_but("bert-0", "llama-3", "gpt2-0")
@pytest.mark.parametrize(
    ("name", "left"), [("bert", 0), ("gpt2", 0), ("llama", 3), ("vit", 0), ("whisper", 0), ("encoder", 0), ("qwen3", 3)]
)
def test_neighbours_absorb_permutations(name: str, left: int) -> None:
    """The same function without gathers.

    A gate shares its neurons with the weight beside it, and grouped queries share the order of their values' channels:
    there the gate and the output keep theirs, and so do query and key where positions turn their channels.
    """
    dense = open_model(with_biases(name))
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    couplings = [coupling for coupling in dense.couplings if coupling.kind in ("hidden", "query_key", "value_output")]
    names = {name for coupling in couplings for name in coupling.weights}
    weights = [w for w in dense.weights if w.name in names]
    analysis = Analysis(tuple(analyze_weight(w, dense.read(w.name)) for w in weights))
    pivoted, two = structure_named("pivoted"), structure_named("two_factor")
    assert pivoted is not None and two is not None
    made: dict[str, Replacement] = {}
    for group in analysis.singles:
        made |= pivoted.factorize(group, analysis[group.name].weight.full_rank * 5 // 8, analysis, dense)
    free = agree_channel_order(made, dense.weights, dense.couplings, dense)

    def gathers(found: dict[str, Replacement]) -> int:
        return sum(isinstance(r.factors, Pivoted) and r.factors.order is not None for r in found.values())

    layers = len({coupling.weights for coupling in couplings if coupling.kind == "hidden"})
    assert gathers(made) == len(weights)
    assert gathers(free) <= left * layers
    size = sum(f.left.size + f.right.size for f in (r.factors for r in free.values()) if isinstance(f, Pivoted))
    assert size == sum(f.left.size + f.right.size for f in (r.factors for r in made.values()) if isinstance(f, Pivoted))
    feed = dense.signature.example(2, 9)
    before, after = dense.rewrite(made).run(feed), dense.rewrite(free).run(feed)
    assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()
    # One neighbour may be two factors: it follows.
    lasts = {coupling.weights[-1] for coupling in couplings}
    for group in analysis.singles:
        if group.name in lasts:
            made |= two.factorize(group, analysis[group.name].weight.full_rank // 2, analysis, dense)
    mixed = agree_channel_order(made, dense.weights, dense.couplings, dense)
    assert gathers(mixed) < gathers(made)
    before, after = dense.rewrite(made).run(feed), dense.rewrite(mixed).run(feed)
    assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()
    # A coupling that is not factored whole stays as it was.
    part = {name: made[name] for name in names - lasts}
    assert gathers(agree_channel_order(part, dense.weights, dense.couplings, dense)) == gathers(part)
