"""Laws of the forecast of fidelity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.forecast import FLOOR, STEP, Foretold, foretold_at, least_keep
from lowrank.core.verdict import forecast_sentences

fidelities = st.floats(0, 1)
forecasts = st.tuples(fidelities, fidelities, fidelities).map(
    lambda values: [
        Foretold(keep, {"a set": value}) for keep, value in zip((0.8, 0.5, 0.3), sorted(values)[::-1], strict=True)
    ]
)


def at(forecast: list[Foretold], keep: float) -> float:
    point = foretold_at(forecast, keep)
    assert point is not None
    return point.fidelity["a set"]


@given(forecasts)
def test_what_was_tried_is_foretold(forecast: list[Foretold]) -> None:
    for point in forecast:
        assert at(forecast, point.keep) == pytest.approx(point.fidelity["a set"], abs=2e-4)


@given(forecasts, st.floats(0.05, 0.99), st.floats(0.05, 0.99))
def test_more_of_the_model_is_never_foretold_to_be_worse(forecast: list[Foretold], one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert at(forecast, small) <= at(forecast, large) + 1e-9
    assert 0 <= at(forecast, small) <= 1


@given(forecasts)
def test_the_least_budget_is_the_first_that_reaches_the_floor(forecast: list[Foretold]) -> None:
    keep = least_keep(forecast)
    if keep is None:
        assert at(forecast, 1 - STEP) < FLOOR
    else:
        assert at(forecast, keep) >= FLOOR - 1e-9
        assert keep == pytest.approx(STEP) or at(forecast, keep - STEP) < FLOOR


def test_a_result_that_is_better_than_foretold_needs_less() -> None:
    forecast = [Foretold(keep, {"a set": value}) for keep, value in ((0.8, 0.95), (0.5, 0.7), (0.3, 0.4))]
    plain, scaled = least_keep(forecast), least_keep(forecast, {"a set": 0.5})
    assert plain is not None and scaled is not None and scaled < plain


def test_what_is_foretold_is_of_the_kind_that_was_judged() -> None:
    point = foretold_at([Foretold(0.5, {"a set": 0.9}, "embedding")], 0.3)
    assert point is not None and point.kind == "embedding"


def test_without_trials_nothing_is_foretold() -> None:
    assert foretold_at([], 0.5) is None
    assert least_keep([]) is None
    assert forecast_sentences([]) == []


def test_the_worst_set_is_named() -> None:
    forecast = [Foretold(0.8, {"short texts": 0.99, "passages of 256 tokens": 0.85})]
    first, second = forecast_sentences(forecast)
    assert "85 %" in first and "passages of 256 tokens" in first
    assert "Budgets below 0.85" in second
