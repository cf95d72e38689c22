"""The choice over coupled weights against brute force, and its time at size."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.selection.partition import choose, partitions
from lowrank.core.weight import Coupling, Group

curve = st.lists(st.tuples(st.integers(1, 20), st.floats(0, 1)), min_size=1, max_size=4)


def block(name: str) -> list[Group]:
    """Four weights as in an attention, with two products and a shared basis."""
    names = [f"{name}.{part}" for part in "qkvo"]
    single = [Group(n, (n,)) for n in names]
    couplings = [
        Coupling("query_key", (names[0], names[1])),
        Coupling("value_output", (names[2], names[3])),
        Coupling("same_input", tuple(names[:3])),
    ]
    return [*single, *(Group(f"{name}.{i}", b.weights, b) for i, b in enumerate(couplings))]


def test_every_way_to_split_a_block() -> None:
    splits = partitions({g.name: g for g in block("a")})
    assert {frozenset(s) for s in splits[0]} == {
        frozenset(s)
        for s in (
            ("a.q", "a.k", "a.v", "a.o"),
            ("a.0", "a.v", "a.o"),
            ("a.1", "a.q", "a.k"),
            ("a.0", "a.1"),
            ("a.2", "a.o"),
        )
    }


@given(st.lists(curve, min_size=14, max_size=14), st.integers(1, 120))
def test_equals_brute_force(curves: list[list[tuple[int, float]]], limit: int) -> None:
    groups = [*block("a")[:6], *block("b"), Group("c", ("c",))]
    costs = {g.name: np.array([c for c, _ in found]) for g, found in zip(groups, curves, strict=True)}
    errors = {g.name: np.array([e for _, e in found]) for g, found in zip(groups, curves, strict=True)}
    blocks = partitions({g.name: g for g in groups})
    found = choose(costs, errors, blocks, limit)

    def cheap_first(names: tuple[str, ...]) -> list[tuple[int, float]]:
        """All costs and errors of a partition; of those only what no other beats."""
        picks = itertools.product(*(range(len(costs[n])) for n in names))
        all_of = sorted(
            (
                sum(int(costs[n][i]) for n, i in zip(names, pick, strict=True)),
                sum(float(errors[n][i]) for n, i in zip(names, pick, strict=True)),
            )
            for pick in picks
        )
        return [(c, e) for i, (c, e) in enumerate(all_of) if all(e < before for _, before in all_of[:i])]

    states = [(0, 0.0)]
    for splits in blocks:
        options = [state for split in splits for state in cheap_first(split)]
        merged = sorted((c + c2, e + e2) for c, e in states for c2, e2 in options if c + c2 <= limit)
        lowest, states = float("inf"), []
        for c, e in merged:
            if e < lowest:
                states.append((c, e))
                lowest = e
    if not states:
        assert found is None
        return
    assert found is not None
    assert found.allocation.error == pytest.approx(min(e for _, e in states), abs=1e-9)
    assert found.allocation.cost <= limit
    chosen = found.options
    assert sum(int(costs[n][i]) for n, i in chosen.items()) == found.allocation.cost
    weights = sorted(w for n in chosen for w in next(g for g in groups if g.name == n).weights)
    assert weights == sorted({w for g in groups for w in g.weights})


@pytest.mark.slow
def test_five_hundred_weights_are_chosen_for_in_seconds() -> None:
    """125 attention blocks with all their structures; how long it takes is shown, not tested."""
    rng = np.random.default_rng(0)
    groups = {g.name: g for i in range(125) for g in block(f"b{i}")}
    costs, errors = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for name, group in groups.items():
        ranks = np.arange(1, 769)
        power, scale = rng.uniform(0.3, 1.2), len(group.weights) * rng.lognormal(0, 1.5)
        tails = np.cumsum((ranks[::-1] ** -power) ** 2)[::-1]
        costs[name] = ranks * 1536 * len(group.weights) - (ranks**2 if len(group.weights) == 1 else 0)
        errors[name] = scale * np.append(tails[1:], 0.0) / tails[0]
    blocks = partitions(groups)
    dense = 500 * 768 * 768
    for keep in (0.8, 0.5, 0.2):
        start = time.perf_counter()
        found = choose(costs, errors, blocks, int(keep * dense))
        seconds = time.perf_counter() - start
        assert found is not None and found.allocation.cost <= keep * dense
        assert found.allocation.gap <= 1e-3 * found.allocation.error
        print(f"keep {keep}: {seconds:.2f} s, gap {found.allocation.gap / found.allocation.error:.1e}")
