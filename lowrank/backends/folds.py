"""Joint moments of weights over two folds of batches: those that choose new numbers, and those that judge them."""

from __future__ import annotations

from lowrank.core.truncation.refit import Joint


class JointFolds:
    """Sums of the moments of batches, by weight name and fold.

    Args:
        fit_count: how many of the first batches choose; those after them judge.
    """

    def __init__(self, fit_count: int) -> None:
        self.fit_count = fit_count
        self._sums: tuple[dict[str, Joint], dict[str, Joint]] = {}, {}

    def add(self, name: str, batch: int, joint: Joint) -> None:
        """Add the moments of one batch for one weight."""
        sums = self._sums[batch >= self.fit_count]
        sums[name] = sums[name] + joint if name in sums else joint

    def both(self) -> dict[str, tuple[Joint, Joint]]:
        """The moments of both folds; without batches to judge by, those that choose judge too."""
        fit, judge = self._sums
        return {name: (joint, judge.get(name, joint)) for name, joint in fit.items()}
