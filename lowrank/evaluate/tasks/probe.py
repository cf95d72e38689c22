"""A linear probe: how well classes are predicted by one linear map of a model's own vectors."""

from __future__ import annotations

import numpy as np

from lowrank.core.distance import Array

FOLDS = 5
STRENGTHS = np.logspace(-4, 1, 11)
"""Ridge penalties that are tried, in units of the mean eigenvalue."""


def probe_hits(vectors: Array, labels: Array) -> Array:
    """1 for each sample whose class a probe finds that was fitted to the other folds, else 0.

    Ridge regression on one-hot targets (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 4.2):
    closed-form, so that no luck of an optimiser is in the comparison. Its penalty is chosen on the training folds by
    generalised cross-validation (Golub, Heath and Wahba 1979). Folds are the same for every model: samples go to them
    in turn, class after class.

    Args:
        vectors: samples x width.
        labels: a class for each, 0 to n - 1.
    """
    folds, hits = folds_of(labels), np.zeros(len(labels))
    for fold in range(FOLDS):
        test = folds == fold
        if test.any() and not test.all():
            hits[test] = _fitted(vectors[~test], labels[~test], vectors[test]) == labels[test]
    return hits


def folds_of(labels: Array) -> Array:
    """A fold for each sample, every class spread evenly over all.

    Example:
        >>> folds_of(np.array([0, 0, 1, 0, 1])).tolist()
        [0, 1, 3, 2, 4]
    """
    folds = np.empty(len(labels), np.int64)
    # The order of the classes one after the other: rare ones do not all fall into the first fold.
    folds[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % FOLDS
    return folds


def _fitted(train: Array, labels: Array, test: Array) -> Array:
    """The classes of `test` by ridge regression on `train`."""
    center, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    x = (train - center) / scale
    targets = np.eye(int(labels.max()) + 1)[labels]
    mean = targets.mean(0)
    values, directions = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0)
    projected = directions.T @ (x.T @ (targets - mean))
    total, best, coefficients = float(np.square(targets - mean).sum()), np.inf, projected
    for strength in STRENGTHS * max(float(values.mean()), 1e-12):
        shrunk = projected / (values + strength)[:, None]
        residual = total - float((2 * projected * shrunk - values[:, None] * shrunk**2).sum())
        freedom = len(x) - 1 - float((values / (values + strength)).sum())
        judged = residual / freedom**2 if freedom > 0 else np.inf
        if judged < best:
            best, coefficients = judged, shrunk
    if best == np.inf:
        coefficients = projected / (values + values.mean() + 1e-12)[:, None]
    return ((test - center) / scale @ (directions @ coefficients) + mean).argmax(1)
