"""Pareto fronts: what is on one is beaten by nothing, and what is not is beaten by something on it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.selection.pareto import TIE, Result, dominates, on_front

RESULTS = st.lists(
    st.builds(
        Result, st.integers(1, 5), st.sampled_from([1.0, 1.01, 1.03, 1.5, 2.0]), st.sampled_from([0.0, 0.1, 0.2])
    ),
    min_size=1,
    max_size=12,
)


@given(RESULTS)
def test_nothing_beats_what_is_on_the_front(results: list[Result]) -> None:
    chosen = on_front(results)
    front = [each for each, on in zip(results, chosen, strict=True) if on]
    assert front
    for each, on in zip(results, chosen, strict=True):
        assert on is not any(dominates(other, each) for other in results)
    assert not any(dominates(a, b) for a in front for b in front)


@given(RESULTS, st.data())
def test_no_two_beat_each_other(results: list[Result], data: st.DataObject) -> None:
    a, b = data.draw(st.sampled_from(results)), data.draw(st.sampled_from(results))
    assert not (dominates(a, b) and dominates(b, a))
    assert not dominates(a, a)


def test_a_time_within_the_noise_is_no_reason_to_be_on_the_front() -> None:
    dense = Result(100, 10.0, 0.0)
    assert on_front([dense, Result(100, 10.0 * (1 - TIE / 2), 0.1)]) == [True, False]
    assert on_front([dense, Result(100, 10.0 * (1 - 2 * TIE), 0.1)]) == [True, True]
