"""Joint moments of weights over two folds of batches: those that choose new numbers, and those that judge them."""

from __future__ import annotations

from lowrank.core.truncation.refit import Joint


class JointFolds:
    """Sums of the moments of batches, by weight name and fold, in the order in which they are added."""

    def __init__(self) -> None:
        self._sums: tuple[dict[str, Joint], dict[str, Joint]] = {}, {}

    def add(self, name: str, joint: Joint, *, judges: bool) -> None:
        """Add the moments of some batches for one weight."""
        sums = self._sums[judges]
        sums[name] = sums[name] + joint if name in sums else joint

    def both(self) -> dict[str, tuple[Joint, Joint]]:
        """The moments of both folds; without batches to judge by, those that choose judge too."""
        fit, judge = self._sums
        return {name: (joint, judge.get(name, joint)) for name, joint in fit.items()}
