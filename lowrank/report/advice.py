"""What a sweep means, in words: what is smallest, what is fastest, and when factors are not worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lowrank.core.selection.pareto import dominates
from lowrank.results.sweep import Point

LIMITS = (0.01, 0.05)
"""Drops that are looked at."""
FACTORED = ("lowrank", "healed")


def advice(points: Sequence[Point]) -> list[str]:
    """Sentences, computed from the points of a sweep alone.

    Args:
        points: of a sweep; the first is the dense model.
    """
    dense = points[0]
    sentences = [_within(limit, points, dense) for limit in LIMITS]
    sentences += _beaten(points) + _pruned(points, dense)
    return sentences


def _within(limit: float, points: Sequence[Point], dense: Point) -> str:
    """The smallest and the fastest whose drop is at most a limit, and whether factors are worth it there."""
    allowed = [point for point in points if point.drop <= limit]
    smallest, fastest = _least(allowed, lambda p: p.bytes), _least(allowed, lambda p: p.ms)
    front = f"within a drop of {limit:g}"
    if smallest.name == fastest.name == dense.name:
        return f"{front}: nothing is smaller or faster than the dense model".capitalize() + "."
    sizes = f"{smallest.name} ({_megabytes(smallest.bytes)}, {smallest.bytes / dense.bytes:.2f} of dense)"
    times = f"{fastest.name} ({fastest.ms:.2f} ms, {fastest.ms / dense.ms:.2f} of dense)"
    if smallest.name == fastest.name:
        best = f"the smallest and the fastest is {smallest.name} ({_megabytes(smallest.bytes)}, {fastest.ms:.2f} ms)"
    else:
        best = f"the smallest is {sizes}, the fastest {times}"
    return f"{front.capitalize()}: {best}. {_verdict(smallest, fastest, allowed)}"


def _verdict(smallest: Point, fastest: Point, allowed: Sequence[Point]) -> str:
    factored = [point.method in FACTORED for point in (smallest, fastest)]
    if all(factored):
        return "Low rank is the better choice there."
    if not any(point.method in FACTORED for point in allowed):
        return f"No low-rank point is within it: {_plainly(smallest, fastest)} the better choice."
    if not any(factored):
        return f"No low-rank point is smaller or faster: {_plainly(smallest, fastest)} the better choice there."
    gained = "size" if factored[0] else "time"
    other = fastest if factored[0] else smallest
    return f"Low rank is better in {gained} alone; for the other, {other.name} is."


def _plainly(smallest: Point, fastest: Point) -> str:
    sentences = [f"plain {p.dtype}" if p.name.startswith("dense-") else p.name for p in (smallest, fastest)]
    names = list(dict.fromkeys(sentences))
    return f"{names[0]} is" if len(names) == 1 else f"{' and '.join(names)} are"


def _beaten(points: Sequence[Point]) -> list[str]:
    """Which low-rank points a plain rounding beats in every respect."""
    factored = [point for point in points if point.method in FACTORED]
    sentences: list[str] = []
    for plain in (point for point in points if point.method == "dense" and point.dtype != "float32"):
        beaten = [p.name for p in factored if dominates(plain.result, p.result)]
        if beaten:
            sentences.append(
                f"Plain {plain.dtype} beats {len(beaten)} of {len(factored)} low-rank points, which are not smaller, "
                f"not faster and no closer to the dense model: {', '.join(beaten)}."
            )
    return sentences


def _pruned(points: Sequence[Point], dense: Point) -> list[str]:
    """What zeros are worth."""
    pruned = [point for point in points if point.method == "pruned"]
    if not pruned:
        return []
    sizes = ", ".join(f"{_gzipped(point)} at {point.keep:g}" for point in pruned)
    return [
        "Pruned matrices are as large as they were, and zeros are multiplied like other numbers: nothing is smaller or "
        f"faster until it is compressed for transport (gzip: {sizes}; the dense file {_gzipped(dense)})."
    ]


def _least(points: Sequence[Point], measure: Callable[[Point], float]) -> Point:
    return min(points, key=lambda point: (measure(point), point.drop))


def _gzipped(point: Point) -> str:
    assert point.gzip_bytes is not None
    return _megabytes(point.gzip_bytes)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
