"""`classify:FILE`: accuracy, by the model's own head if its classes are those of the data, else by a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.outputs import main_of
from lowrank.core.distance import Array
from lowrank.errors import TaskError
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.tasks.base import Score, Task
from lowrank.evaluate.tasks.inputs import Batches, Texts, output_of_example
from lowrank.evaluate.tasks.model_files import class_names
from lowrank.evaluate.tasks.probe import FOLDS, probe_hits
from lowrank.evaluate.tasks.tables import read_columns


@dataclass(frozen=True)
class Classes:
    """Labels of samples, and how they are predicted from a model's vectors."""

    labels: Array
    """A class for each sample: of the model's head, or just numbered."""
    head: bool
    """Whether the model's own scores decide; else a probe is fitted to each model's vectors, and cross-validated."""

    @property
    def metric(self) -> str:
        """Accuracy, and by what it is predicted."""
        return "accuracy" if self.head else "accuracy of a linear probe"

    def hits(self, vectors: Array) -> Array:
        """1 for every sample whose class is found, else 0."""
        if self.head:
            return (vectors.argmax(1) == self.labels).astype(np.float64)
        return probe_hits(vectors, self.labels)


@dataclass(frozen=True)
class Classification:
    """Accuracy on labelled texts."""

    name: str
    texts: Texts
    batches: Batches
    classes: Classes
    higher_is_better: bool = True

    @property
    def metric(self) -> str:
        """Accuracy, and by what."""
        return self.classes.metric

    def score(self, model: Runs) -> Score:
        """A hit or a miss for each sample."""
        return Score(self.classes.hits(self.texts.vectors(model, self.batches)))


def classes_of(spec: str, dense: Backend, labels: Sequence[str]) -> Classes:
    """Labels as classes of the model's head, by name (upper and lower case alike) or number; else numbered for a probe.

    Raises:
        TaskError: if there are fewer than two classes, or too few samples of one for a probe, or the model gives scores
            of tokens.
    """
    present = sorted(set(labels))
    if len(present) < 2:
        raise TaskError(
            f"--task {spec}: all {len(labels)} samples have the label {present[0][:40]!r}; give two or more"
        )
    if dense.output_kind == "logits":
        scores = output_of_example(dense)
        if scores.ndim != 2 or main_of(signature_of(dense).outputs).over_positions:
            raise TaskError(f"--task {spec}: the model gives scores of tokens, not of classes; try lm:FILE or fidelity")
        head = _head_classes(dense, scores.shape[1], present)
        if head is not None:
            return Classes(np.array([head[label] for label in labels]), head=True)
    number = {label: i for i, label in enumerate(present)}
    counts = np.bincount([number[label] for label in labels])
    if counts.min() < 2 or len(labels) < 2 * FOLDS:
        raise TaskError(
            f"--task {spec}: the label {present[int(counts.argmin())][:40]!r} has {counts.min()} of {len(labels)} "
            f"samples; a probe needs two of each label, and {2 * FOLDS} in all"
        )
    return Classes(np.array([number[label] for label in labels]), head=False)


def _head_classes(dense: Backend, count: int, present: Sequence[str]) -> dict[str, int] | None:
    """Which of the head's classes each label is; None if it has other classes."""
    names = {name.lower(): i for i, name in enumerate(class_names(dense, count))}
    if all(label.lower() in names for label in present):
        return {label: names[label.lower()] for label in present}
    if all(label.isdecimal() and int(label) < count for label in present):
        return {label: int(label) for label in present}
    return None


def read_classify(spec: str, rest: str, dense: Backend) -> Task:
    """From a table with the columns `label` and `sentence` (or `text`).

    Raises:
        TaskError: if the table lacks one, or its labels are not enough.
        CalibrationError: if the file cannot be read.
    """
    path = Path(rest).expanduser()
    labels, sentences = read_columns(spec, path, [("label",), ("sentence", "text")])
    if not labels:
        raise TaskError(f"--task {spec}: {path} has no rows")
    texts = Texts.of(spec, dense)
    return Classification(spec, texts, texts.batches(sentences), classes_of(spec, dense, labels))
