"""Two limits at once: brute force agrees on small cases, both limits hold, and no choice is below the bound."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank.core.selection.partition import partitions
from lowrank.core.selection.two_limits import Limits, choose_within
from lowrank.core.weight import Group

GROUPS = {
    name: Group(name, weights)
    for name, weights in (("a", ("a",)), ("b", ("b",)), ("c", ("c",)), ("a+b", ("a", "b")), ("b+c", ("b", "c")))
}
BLOCKS = partitions({name: GROUPS[name] for name in ("a", "b", "a+b", "c")})


@st.composite
def cases(draw: st.DrawFn) -> tuple[Limits, dict[str, np.ndarray]]:
    names = ("a", "b", "a+b", "c")
    sizes = {name: draw(st.integers(1, 5)) for name in names}

    def numbers(name: str) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(0, 20), min_size=sizes[name], max_size=sizes[name])), np.int64)

    costs, others = ({name: numbers(name) for name in names} for _ in range(2))
    errors = {name: numbers(name) / 8 for name in names}
    return Limits(costs, others, draw(st.integers(0, 45)), draw(st.integers(0, 45))), errors


def best_of(limits: Limits, errors: dict[str, np.ndarray]) -> float | None:
    """The least error of all choices within both limits."""
    found: list[float] = []
    for ways in product(*BLOCKS):
        names = [name for way in ways for name in way]
        for picks in product(*(range(len(errors[name])) for name in names)):
            options = dict(zip(names, picks, strict=True))
            cost, other = limits.spent(options)
            if cost <= limits.limit and other <= limits.other_limit:
                found.append(sum(float(errors[name][i]) for name, i in options.items()))
    return min(found, default=None)


@given(cases())
def test_brute_force_agrees(case: tuple[Limits, dict[str, np.ndarray]]) -> None:
    limits, errors = case
    best, choice = best_of(limits, errors), choose_within(limits, errors, BLOCKS)
    if best is None:
        assert choice is None
        return
    assert choice is not None
    assert choice.allocation.error == pytest.approx(best, abs=1e-9)
    cost, other = limits.spent(choice.options)
    assert cost <= limits.limit and other <= limits.other_limit
    assert choice.allocation.error == pytest.approx(sum(float(errors[n][i]) for n, i in choice.options.items()))
    assert choice.allocation.bound <= best + 1e-9


def least_error(limits: Limits, errors: dict[str, np.ndarray]) -> float | None:
    """Dynamic programming over both limits, group by group."""
    states = {(0, 0): 0.0}
    for name, losses in errors.items():
        after: dict[tuple[int, int], float] = {}
        for (cost, other), error in states.items():
            for i, loss in enumerate(losses):
                key = cost + int(limits.costs[name][i]), other + int(limits.others[name][i])
                if key[0] <= limits.limit and key[1] <= limits.other_limit:
                    after[key] = min(after.get(key, np.inf), error + float(loss))
        states = after
    return min(states.values(), default=None)


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_what_is_said_to_be_the_least_is(seed: int) -> None:
    """More groups, so that the first choice is not the best one, and some options are left out on the way."""
    rng = np.random.default_rng(seed)
    names = [str(number) for number in range(int(rng.integers(5, 11)))]
    sizes = {name: int(rng.integers(2, 6)) for name in names}
    costs, others = ({n: rng.integers(0, 16, sizes[n]) for n in names} for _ in range(2))
    errors = {n: rng.random(sizes[n]) for n in names}
    most = [sum(int(each[n].max()) for n in names) for each in (costs, others)]
    limits = Limits(costs, others, int(rng.uniform(0.2, 0.6) * most[0]), int(rng.uniform(0.2, 0.6) * most[1]))
    best, choice = least_error(limits, errors), choose_within(limits, errors, [[(name,)] for name in names])
    assert (best is None) == (choice is None)
    if best is None or choice is None:
        return
    found = choice.allocation
    assert found.bound <= best * (1 + 1e-9) + 1e-12 and found.error >= best * (1 - 1e-9)
    assert not found.exact or found.error == pytest.approx(best)
    assert found.error <= best + found.gap + 1e-9


def test_many_options_keep_to_both_limits_and_say_how_far_they_are() -> None:
    """Curves as models have them: errors fall as costs rise, and what is small is not always fast."""
    rng = np.random.default_rng(0)
    costs, others, errors = {}, {}, {}
    for number in range(24):
        ranks = np.arange(1, 97)
        costs[str(number)] = ranks * rng.integers(50, 150)
        others[str(number)] = np.where(ranks % 2, 1, 4) * ranks * rng.integers(50, 150)
        errors[str(number)] = np.exp(-ranks / rng.uniform(8, 40)) * (1 + (ranks % 2)) * rng.uniform(0.1, 2)
    blocks = [[(name,)] for name in costs]
    most = [sum(int(each[name].max()) for name in costs) for each in (costs, others)]
    before = np.inf
    for share in (0.2, 0.3, 0.5):
        limits = Limits(costs, others, int(share * most[0]), int(0.4 * share * most[1]))
        choice = choose_within(limits, errors, blocks)
        assert choice is not None
        cost, other = limits.spent(choice.options)
        assert cost <= limits.limit and other <= limits.other_limit
        assert choice.allocation.gap <= 1e-2 * choice.allocation.error
        assert choice.allocation.error < before
        before = choice.allocation.error
