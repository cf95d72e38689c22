"""`mteb:NAME`: a task of the Massive Text Embedding Benchmark, by its own package, which fetches the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrank.backends.base import Backend
from lowrank.core.distance import Array
from lowrank.errors import TaskError, first_line
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.tasks.base import Score, Task, harness_errors
from lowrank.evaluate.tasks.inputs import Texts

INSTALL = "pip install 'lowrank[tasks]'"


@dataclass(frozen=True)
class MtebTask:
    """The main score of a task of mteb, averaged over its subsets as mteb does."""

    name: str
    texts: Texts
    task: Any
    """An `mteb.AbsTask`."""
    higher_is_better: bool = True

    @property
    def metric(self) -> str:
        """The task's main score."""
        return str(self.task.metadata.main_score)

    def score(self, model: Runs) -> Score:
        """A value without samples: mteb gives none."""
        import mteb

        with harness_errors(self.name, "mteb", "sts:FILE, classify:FILE and retrieval:FOLDER do not"):
            # Without a cache: mteb would take what it keeps for the scores of any other model of this name.
            (result,) = mteb.evaluate(
                encoder(self.texts, model), self.task, cache=None, show_progress_bar=False
            ).task_results
            return Score.of_value(float(result.get_score()))


def encoder(texts: Texts, model: Runs) -> Any:
    """A model as mteb calls it."""
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    class Encoder(AbsEncoder):
        """Texts to embeddings that are compared by cosine."""

        def __init__(self) -> None:
            self.mteb_model_meta = ModelMeta.create_empty(
                {"name": "lowrank/measured", "revision": "1", "similarity_fn_name": ScoringFunction.COSINE}
            )

        def encode(self, inputs: Any, **options: Any) -> Array:
            """A row for each text of all batches; instructions are not used."""
            given = [text for batch in inputs for text in batch["text"]]
            return texts.vectors(model, texts.batches(given)).astype(np.float32)

    return Encoder()


def read_mteb(spec: str, rest: str, dense: Backend) -> Task:
    """By the task's name in mteb.

    Raises:
        TaskError: if the package is missing or has no such task, or the model gives no embeddings.
    """
    texts = Texts.of(spec, dense, embeds=True)
    try:
        import mteb
    except ImportError:
        raise TaskError(f"--task {spec}: mteb is not installed; {INSTALL}") from None
    try:
        task = mteb.get_task(rest)
    except Exception as error:
        raise TaskError(f"--task {spec}: {first_line(error)}") from None
    if "text" not in task.metadata.modalities:
        raise TaskError(f"--task {spec}: that is a task of {', '.join(task.metadata.modalities)}, not of text")
    return MtebTask(spec, texts, task)
