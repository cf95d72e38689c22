"""`fidelity`: how often the model gives the dense model's answer. Needs no labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowrank.backends.base import Backend
from lowrank.calibrate.judging_set import JudgingSet
from lowrank.calibrate.sets import judging_sets
from lowrank.core.distance import Array
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.judges import Judges
from lowrank.evaluate.likeness import alike
from lowrank.evaluate.tasks.base import Score, Task
from lowrank.results.parts import FIDELITY


def of_worst(parts: Array) -> float:
    """The smallest fidelity of all outputs and sets that are present.

    Args:
        parts: for each sample what is alike and the most that there could be, of each output, and the number of its
            set.
    """
    sets = [parts[parts[:, -1] == number, :-1] for number in np.unique(parts[:, -1])]
    return float(np.min([alike(rows[:, at : at + 2]) for rows in sets for at in range(0, rows.shape[1], 2)]))


@dataclass(frozen=True)
class Fidelity:
    """By what the output is: agreement of the first choice, ranking of the nearest others, or explained variance (see
    `evaluate.fidelity`), of the worst output on the worst of the sets. The dense model has 1."""

    name: str
    judges: Judges
    higher_is_better: bool = True

    @property
    def metric(self) -> str:
        """`agreement` of logits, `ranking` of embeddings, `explained` of values."""
        return FIDELITY[self.judges.kind]

    def score(self, model: Runs) -> Score:
        """Against the dense model's outputs, which are computed once."""
        found = enumerate(np.hstack([each.parts for each in outputs]) for _, outputs in self.judges.against(model))
        parts = [np.column_stack([rows, np.full(len(rows), number)]) for number, rows in found]
        return Score(np.concatenate(parts), of_worst)


def read_fidelity(spec: str, rest: str, dense: Backend, judges: Judges | None) -> Task:
    """On the sets that a report shows, on other text alone, or on random inputs.

    Raises:
        CalibrationError: if the text cannot be read.
    """
    if rest:
        from lowrank.calibrate.data import load_calibration

        calibration = load_calibration(dense, Path(rest).expanduser())
        assert calibration is not None
        whole = (*calibration.fit, *calibration.heldout, *calibration.report)
        return Fidelity(spec, Judges(calibration.backend, [JudgingSet(rest, whole)]))
    return Fidelity(spec, judges or Judges(dense, judging_sets(dense, None)))
