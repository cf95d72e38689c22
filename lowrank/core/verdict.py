"""The one line that a person can act on: where factoring pays, and where it does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median

import numpy as np

from lowrank.core.analysis import Analysis, WeightAnalysis
from lowrank.core.cost import two_factor_cost
from lowrank.core.forecast import FLOOR, Foretold, least_keep
from lowrank.core.match import stem

OUTPUT_TOLERANCE = 0.05
"""How far one weight alone may move the model's output, where that was measured."""
OWN_TOLERANCE = 0.10
"""How far it may move its own output, where it was not."""


def kind_of(name: str) -> str:
    """A weight's name without the block it is in, so that the same layer of every block has one kind.

    Example:
        >>> kind_of("encoder.layer.3.attention.self.query.weight")
        'attention.self.query'
    """
    parts = re.split(r"(?:^|\.)\d+\.", stem(name))
    return parts[-1] if len(parts) > 1 else stem(name)


def keep_at_tolerance(record: WeightAnalysis, measured: bool) -> float:
    """The share of its parameters that two factors need to stay within the tolerance; above 1 they do not pay."""
    allowed = OUTPUT_TOLERANCE**2 / record.sensitivity if measured else OWN_TOLERANCE**2
    rank = int(np.argmax(record.error_curve <= allowed))
    weight = record.weight
    return two_factor_cost(weight.rows, weight.cols, max(rank, 1), weight.stack) / weight.params


def verdict(analysis: Analysis) -> str:
    """Which kinds of layer can be factored within a tolerance, and at what share of their size."""
    measured = any(record.sensitivity != 1.0 for record in analysis.weights)
    kinds: dict[str, list[float]] = {}
    for record in analysis.weights:
        kinds.setdefault(kind_of(record.weight.name), []).append(keep_at_tolerance(record, measured))
    shares = sorted((median(keeps), kind) for kind, keeps in kinds.items())
    bounds = {"factoring pays in": (0, 0.75), "hardly in": (0.75, 1), "not in": (1, np.inf)}
    parts: list[str] = []
    for words, (low, high) in bounds.items():
        names = [f"{kind} ({share:.2f})" for share, kind in shares if low <= share < high]
        parts += [f"{words} {_listed(names)}"] if names else []
    text = ", ".join(parts) or "there is nothing to factor"
    may = f"the model's output by {OUTPUT_TOLERANCE:.0%}" if measured else f"its own output by {OWN_TOLERANCE:.0%}"
    meaning = f"share of parameters that two factors need if each weight may change {may}"
    return f"{text[0].upper()}{text[1:]} ({meaning})." if parts else f"{text[0].upper()}{text[1:]}."


def _listed(items: list[str], most: int = 6) -> str:
    shown = items[:most] + ([f"{len(items) - most} more"] if len(items) > most else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def forecast_sentences(forecast: Sequence[Foretold]) -> list[str]:
    """What budgets are expected to give the dense model's answers, and which this model cannot bear; empty if nothing
    was tried."""
    if not forecast:
        return []
    tried = ", ".join(f"{100 * point.fidelity[point.worst]:.0f} % at a budget of {point.keep:g}" for point in forecast)
    sets = list(dict.fromkeys(point.worst for point in forecast))
    sentences = [
        f"Expected to give the dense model's answers: {tried} (on {' and '.join(sets)}, before any refit or healing)."
    ]
    enough, floor = least_keep(forecast), f"{100 * FLOOR:.0f} %"
    if all(point.fidelity[point.worst] >= FLOOR for point in forecast):
        sentences.append(f"All of them reach {floor}.")
    elif enough is None:
        sentences.append(f"No budget is expected to reach {floor} without healing.")
    else:
        sentences.append(f"Budgets below {enough:g} are expected to fall short of {floor} without healing.")
    return sentences
