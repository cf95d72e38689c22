"""The knapsack against brute force, its bound, and its time at size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.selection.allocate import allocate, lower_hull

group = st.lists(st.tuples(st.integers(1, 30), st.floats(0, 1)), min_size=1, max_size=6)


@given(st.lists(group, min_size=1, max_size=4), st.integers(1, 90))
def test_equals_brute_force(groups: list[list[tuple[int, float]]], limit: int) -> None:
    costs = [np.array([c for c, _ in g]) for g in groups]
    errors = [np.array([e for _, e in g]) for g in groups]
    found = allocate(costs, errors, limit)
    choices = itertools.product(*(range(len(c)) for c in costs))
    totals = [
        sum(e[i] for e, i in zip(errors, choice, strict=True))
        for choice in choices
        if sum(c[i] for c, i in zip(costs, choice, strict=True)) <= limit
    ]
    if not totals:
        assert found is None
        return
    assert found is not None
    assert found.cost == sum(c[i] for c, i in zip(costs, found.chosen, strict=True)) <= limit
    assert found.error == pytest.approx(min(totals), abs=1e-9)
    assert found.bound <= min(totals) + 1e-9
    assert found.exact


@given(st.lists(group, min_size=1, max_size=5), st.integers(10, 90))
def test_more_budget_never_costs_quality(groups: list[list[tuple[int, float]]], limit: int) -> None:
    costs = [np.array([c for c, _ in g]) for g in groups]
    errors = [np.array([e for _, e in g]) for g in groups]
    less, more = allocate(costs, errors, limit), allocate(costs, errors, limit + 5)
    if less is not None:
        assert more is not None and more.error <= less.error + 1e-12


def test_dense_option_beats_greedy() -> None:
    """Rank by rank, the first weight looks best; kept dense, the second one is."""
    costs = [np.array([1, 2, 3, 4]), np.array([1, 4])]
    errors = [np.array([0.9, 0.6, 0.5, 0.45]), np.array([1.0, 0.0])]
    found = allocate(costs, errors, 5)
    assert found is not None
    assert found.chosen.tolist() == [0, 1]


@pytest.mark.slow
def test_a_large_model_is_solved_nearly_exactly() -> None:
    rng = np.random.default_rng(0)
    costs, errors = [], []
    for g in range(200):
        rows, cols = [(384, 384), (1536, 384), (64, 172)][g % 3]
        ranks = np.arange(1, (rows * cols - 1) // (rows + cols) + 1)
        tail = np.exp(-ranks / (min(rows, cols) * rng.uniform(0.1, 0.6)))
        costs.append(np.append(ranks * (rows + cols), rows * cols))
        errors.append(np.append(tail, 0.0))
    limit = sum(int(c[-1]) for c in costs) // 2
    found = allocate(costs, errors, limit)
    assert found is not None
    assert found.cost <= limit
    assert found.gap <= 1e-5 * found.error


def test_hull_keeps_only_what_a_price_can_choose() -> None:
    costs, errors = np.array([1, 2, 3, 4, 4]), np.array([1.0, 0.9, 0.2, 0.1, 0.3])
    assert lower_hull(costs, errors).tolist() == [0, 2, 3]


def test_nothing_to_allocate() -> None:
    found = allocate([], [], 10)
    assert found is not None and found.cost == 0
