"""`lm_eval:NAME`: a task of EleutherAI's evaluation harness, by its own package, which fetches the data."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.artifacts.outside import is_file
from lowrank.backends.base import Backend
from lowrank.backends.beside import beside
from lowrank.calibrate.batches import token_feed
from lowrank.errors import TaskError
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.tasks.base import Score, Task, harness_errors
from lowrank.evaluate.tasks.inputs import Texts, run
from lowrank.evaluate.tasks.language import CONTEXT, check_causal, log_likelihoods

INSTALL = "pip install 'lowrank[tasks]'"
PREFERRED = ("acc_norm", "acc", "word_perplexity", "perplexity", "byte_perplexity", "bits_per_byte")
"""Metrics by which a task with several is judged, the first that it has."""


@dataclass(frozen=True)
class HarnessTask:
    """The first metric of a task in the order of `PREFERRED`; documents are its samples where it is their mean."""

    name: str
    texts: Texts
    prefix: int
    """The token that a text without context follows."""
    task: Any
    """A task of `lm_eval`."""
    metric: str
    higher_is_better: bool

    def score(self, model: Runs) -> Score:
        """What the harness gives."""
        with _errors(self.name):
            value, rows = _evaluated(self.task, language_model(self.texts, self.prefix, model), self.metric)
        is_mean = len(rows) > 1 and math.isclose(float(np.mean(rows)), value, rel_tol=1e-6, abs_tol=1e-9)
        return Score(np.array(rows)) if is_mean else Score.of_value(value)


def _errors(spec: str) -> AbstractContextManager[None]:
    return harness_errors(spec, "lm_eval", "lm:FILE does not")


def _evaluated(task: Any, model: Any, metric: str) -> tuple[float, list[float]]:
    """A metric, and what each document gave to it, as far as that is a number."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    # The task is read already: an index of all those of the harness takes seconds.
    manager = TaskManager(include_defaults=False)
    results: Any = simple_evaluate(model, tasks=[task], bootstrap_iters=0, task_manager=manager)
    (scores,), (samples,) = results["results"].values(), results["samples"].values()
    value = next(v for key, v in scores.items() if key.partition(",")[0] == metric)
    rows = [sample.get(metric) for sample in samples]
    return float(value), [float(r) for r in rows] if all(isinstance(r, int | float) for r in rows) else []


def language_model(texts: Texts, prefix: int, model: Runs) -> Any:
    """A model as the harness calls it: `loglikelihood` and `loglikelihood_rolling`, each request by itself and so
    without padding; it does not generate."""
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM

    longest = min(texts.signature.max_sequence, CONTEXT)

    class LanguageModel(TemplateLM):
        """Scores of tokens to log-likelihoods."""

        @property
        def eot_token_id(self) -> int:
            return prefix

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
            (ids,) = texts.tokenizer.encode([string], None, bool(add_special_tokens))
            return ids

        def _loglikelihood_tokens(self, requests: Any, **options: Any) -> list[tuple[float, bool]]:
            return [self._likelihood(context, wanted) for _, context, wanted in requests]

        def _likelihood(self, context: list[int], wanted: list[int]) -> tuple[float, bool]:
            ids = [*context, *wanted][-longest:]
            counted = min(len(wanted), len(ids) - 1)
            feed = token_feed([ids], texts.signature)
            log_p, greedy = log_likelihoods(run(model, feed, texts.output)[0], ids, counted)
            return float(log_p.sum()), greedy

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            sums: list[float] = []
            for request in requests:
                ids = self.tok_encode(request.args[0])
                # A window holds one token more than the model reads at once: the last is only predicted.
                windows = utils.get_rolling_token_windows(ids, prefix, longest - 1, 1)
                parts = [self._likelihood(*utils.make_disjoint_window(window)) for window in windows]
                sums.append(sum(value for value, _ in parts))
            return sums

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise TaskError("a task that generates text is not measured; choose one of likelihoods")

    return LanguageModel()


def read_lm_eval(spec: str, rest: str, dense: Backend) -> Task:
    """By the task's name in lm_eval, or the path of its YAML file, which may run code of its own.

    Raises:
        TaskError: if the package is missing or has no such task, the model is no causal language model, or its
            config names no token to begin with.
    """
    texts = Texts.of(spec, dense)
    prefix = _prefix(dense, check_causal(spec, dense).classes)
    if prefix is None:
        raise TaskError(f"--task {spec}: the model's config.json names no bos_token_id or eos_token_id; add one")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise TaskError(f"--task {spec}: lm_eval is not installed; {INSTALL}") from None
    with _errors(spec):
        manager = TaskManager(include_defaults=not is_file(Path(rest)))
        tasks = list(manager.load([rest])["tasks"].values())
    if len(tasks) != 1:
        names = ", ".join(task.task_name for task in tasks[:5])
        raise TaskError(f"--task {spec}: that is a group of {len(tasks)} tasks; name those wanted, such as {names}")
    task: Any = tasks[0]
    if task.OUTPUT_TYPE == "generate_until":
        raise TaskError(f"--task {spec}: that task generates text, which is not measured; choose one of likelihoods")
    ways = task.higher_is_better()
    metric = next((name for name in PREFERRED if name in ways), next(iter(ways)))
    return HarnessTask(spec, texts, prefix, task, metric, bool(ways[metric]))


def _prefix(dense: Backend, vocabulary: int) -> int | None:
    """What the model saw at the beginning of texts."""
    config = beside(dense, "config.json")
    nested = config.get("text_config")
    for entry in (config, nested if isinstance(nested, dict) else {}):
        for name in ("bos_token_id", "eos_token_id"):
            value = entry.get(name)
            if isinstance(value, int) and 0 <= value < vocabulary:
                return value
    return None
