"""Fewer neurons in a feed-forward block: which to keep, and what the last weight must become for them.

The output is `W h`. Keeping the neurons S and refitting `W_S = W C[:, S] C[S, S]^-1` leaves the least squared error
that S allows (the Nystrom approximation in the metric of the hidden activations; MoDeGPT, ICLR 2025, section 3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowrank.core.linalg.eigen import Matrix, Vector, solve_positive

ROUNDS = 48
RIDGE = 1e-5
"""The ridge of every solve, as a share of the mean variance of a neuron."""


def neuron_order(last: Matrix, covariance: Matrix) -> NDArray[np.int64]:
    """All neurons in the order in which they are best kept.

    Forward selection: the next neurons are those whose part that the chosen ones do not give explains most of the
    output. They are taken some at a time, largest gain first; with one at a time it would be orthogonal least squares
    (Chen, Billings and Luo 1989).

    Args:
        last: outputs x neurons, what reads them.
        covariance: of the hidden activations, neurons x neurons.
    """
    count = len(covariance)
    left, cross = covariance.copy(), last @ covariance
    floor = 1e-12 * float(np.diag(covariance).max(initial=0.0))
    # What reads a neuron matters also for what no data excites: the last resort of the order.
    fallback = np.square(last).sum(0)
    free = np.ones(count, bool)
    order: list[int] = []
    while free.any():
        variance = np.diag(left)
        gain = np.where(variance > floor, np.square(cross).sum(0) / np.maximum(variance, floor or 1.0), 0.0)
        ranked = np.lexsort((-fallback, -np.where(free, gain, -1.0)))
        taken = ranked[: max(1, min(int(free.sum()), -(-count // ROUNDS)))]
        order += [int(i) for i in taken]
        free[taken] = False
        ridge = floor + RIDGE * max(float(variance.mean()), 0.0)
        block = left[np.ix_(taken, taken)] + (ridge or 1.0) * np.eye(len(taken))
        solved = solve_positive(block, left[taken])
        cross = cross - cross[:, taken] @ solved
        left = left - left[:, taken] @ solved
    return np.array(order, dtype=np.int64)


def refit(last: Matrix, covariance: Matrix, neurons: NDArray[np.int64]) -> Matrix:
    """What the last weight becomes when only some neurons are kept: outputs x kept."""
    inner = covariance[np.ix_(neurons, neurons)]
    ridge = RIDGE * float(np.trace(covariance)) / len(covariance)
    if ridge == 0.0:
        return last[:, neurons]
    # What is solved for is the change, so that the ridge shrinks toward the weight as it was, not toward zero.
    rest = np.setdiff1d(np.arange(len(covariance)), neurons)
    right = covariance[np.ix_(neurons, rest)] @ last[:, rest].T
    return last[:, neurons] + solve_positive(inner + ridge * np.eye(len(neurons)), right).T


def output_energy(last: Matrix, covariance: Matrix) -> float:
    """The energy of the output, or of a difference of two outputs, on the data of a covariance."""
    return max(float(np.vdot(last @ covariance, last)), 0.0)


def neuron_curve(
    last: Matrix, order: NDArray[np.int64], fit: Matrix, judge: Matrix, points: int = 16
) -> tuple[NDArray[np.int64], Vector]:
    """Errors on the judging fold at some numbers of neurons, from one to all, each with its own refit."""
    count = len(order)
    even = np.linspace(max(1, count // points), count, points).astype(np.int64)
    # Below the even steps errors rise steeply.
    steps = np.unique([1, *(max(1, int(even[0]) >> half) for half in (2, 1)), *even])
    total = output_energy(last, judge)
    errors = np.zeros(len(steps))
    for i, step in enumerate(steps[:-1] if total > 0 else ()):
        neurons, difference = order[:step], last.copy()
        difference[:, neurons] -= refit(last, fit, neurons)
        errors[i] = output_energy(difference, judge) / total
    return steps, np.minimum.accumulate(errors)
