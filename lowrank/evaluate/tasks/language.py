"""`lm:FILE`: the perplexity of a causal language model on a text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed
from lowrank.calibrate.batches import token_feed
from lowrank.calibrate.causal import TokenScores, causal_scores
from lowrank.calibrate.text import read_text
from lowrank.core.distance import Array
from lowrank.errors import TaskError
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.tasks.base import Score, Task, share
from lowrank.evaluate.tasks.inputs import Texts, run

CONTEXT = 1024
"""Tokens that a window has at most: longer contexts gain little, and their scores take gigabytes."""
NUMBERS = 1 << 26
"""Scores in memory at once, unless one window alone has more."""
FEWEST = 16
"""Tokens that a text has to have."""


def perplexity(parts: Array) -> float:
    """`exp` of the mean negative log-likelihood; parts hold its sum, and the number of tokens."""
    mean = share(parts)
    return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True)
class Window:
    """Some tokens, and how many of the last are counted: those before are context."""

    ids: tuple[int, ...]
    counted: int


def windows_of(ids: Sequence[int], context: int) -> Iterator[Window]:
    """Windows that overlap by half, so that every token but the first is counted once, and those after the first window
    have half a window of context or more.

    Example:
        >>> [(w.ids, w.counted) for w in windows_of(range(7), 4)]
        [((0, 1, 2, 3), 3), ((2, 3, 4, 5), 2), ((3, 4, 5, 6), 1)]
    """
    done = 1
    while done < len(ids):
        end = min(context, len(ids)) if done == 1 else min(done + max(1, context // 2), len(ids))
        yield Window(tuple(ids[max(0, end - context) : end]), end - done)
        done = end


@dataclass(frozen=True)
class Perplexity:
    """Perplexity per token of the model's own tokenizer; windows are its samples."""

    name: str
    batches: tuple[tuple[Feed, tuple[Window, ...]], ...]
    output: str
    """The name of the scores."""
    metric: str = "perplexity"
    higher_is_better: bool = False

    def score(self, model: Runs) -> Score:
        """For each window the sum of `-log p` over its counted tokens, and their number."""
        rows = [_losses(run(model, feed, self.output), windows) for feed, windows in self.batches]
        return Score(np.concatenate(rows), perplexity)


def _losses(logits: Array, windows: Sequence[Window]) -> Array:
    return np.array(
        [
            [-log_likelihoods(scores, w.ids, w.counted)[0].sum(), w.counted]
            for scores, w in zip(logits, windows, strict=True)
        ]
    )


def log_likelihoods(logits: Array, ids: Sequence[int], counted: int) -> tuple[Array, bool]:
    """`log p` of the last tokens of a sequence given those before, and whether each is the most likely one.

    Args:
        logits: tokens x vocabulary, of the whole sequence.
        ids: the sequence.
        counted: how many tokens, at most all but the first.
    """
    from scipy.special import logsumexp  # pyright: ignore[reportMissingTypeStubs]

    scores = logits[len(ids) - 1 - counted : len(ids) - 1].astype(np.float64)
    wanted = np.asarray(ids[len(ids) - counted :])
    log_p = scores[np.arange(counted), wanted] - np.asarray(logsumexp(scores, axis=1))
    return log_p, bool((scores.argmax(1) == wanted).all())


def check_causal(spec: str, dense: Backend) -> TokenScores:
    """The scores of a causal language model.

    Raises:
        TaskError: if the model is none.
    """
    scores = causal_scores(dense)
    if isinstance(scores, str):
        raise TaskError(
            f"--task {spec}: perplexity is for causal language models, and this is none: {scores}; try fidelity, "
            "sts:FILE or classify:FILE"
        )
    return scores


def read_lm(spec: str, rest: str, dense: Backend) -> Task:
    """From a text, gzipped or not.

    Raises:
        TaskError: if the model is no causal language model, or the text is too short.
        CalibrationError: if the file cannot be read.
    """
    path = Path(rest).expanduser()
    texts = Texts.of(spec, dense)
    scores = check_causal(spec, dense)
    (ids,) = texts.tokenizer.encode([read_text(path)], None, True)
    texts.check_readable([ids])
    if len(ids) < FEWEST:
        raise TaskError(f"--task {spec}: {path} has {len(ids)} tokens; give some thousands")
    context = min(texts.signature.max_sequence, CONTEXT)
    windows = list(windows_of(ids, context))
    rows = max(1, NUMBERS // (context * scores.classes))
    batches: list[tuple[Feed, tuple[Window, ...]]] = []
    while windows:
        length = len(windows[0].ids)
        some = [w for w in windows[:rows] if len(w.ids) == length]
        windows = windows[len(some) :]
        batches.append((token_feed([w.ids for w in some], texts.signature), tuple(some)))
    return Perplexity(spec, tuple(batches), scores.output)
