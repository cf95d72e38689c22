"""The three folds of samples: to fit, to judge by, to report."""


def split_folds(count: int) -> tuple[list[int], list[int], list[int]]:
    """Indices for fit, held-out and report: of every ten samples eight, one and one.

    Example:
        >>> [len(fold) for fold in split_folds(100)]
        [80, 10, 10]
    """
    heldout = list(range(0, count, 10)) if count > 1 else []
    report = list(range(5, count, 10)) or heldout or list(range(count))
    aside = set(heldout) | (set(report) if count > 5 else set())
    return [i for i in range(count) if i not in aside], heldout, report
