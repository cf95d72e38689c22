"""From texts to batches, and from a model's outputs to one vector a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed, Signature
from lowrank.calibrate.data import BATCH_ROWS, BATCH_TOKENS, token_feed
from lowrank.calibrate.tokenize import Encode, open_tokenizer
from lowrank.core.distance import Array
from lowrank.errors import LowRankError, TaskError, first_line
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.tasks.model_files import pool, pooling_of


@dataclass(frozen=True)
class Batches:
    """Samples of one length each, so that there is no padding; equal ones are run once."""

    feeds: tuple[Feed, ...]
    places: Array
    """For every sample, which row of all feeds in a row it is."""

    def run(self, model: Runs, made_of: Callable[[Array, Feed], Array]) -> Array:
        """A row for every sample, in order.

        Args:
            model: what is run.
            made_of: from an output and its batch to a row for each of its samples.

        Raises:
            TaskError: if the model does not run.
        """
        return np.concatenate([made_of(run(model, feed), feed) for feed in self.feeds])[self.places]


def run(model: Runs, feed: Feed) -> Array:
    """One forward pass.

    Raises:
        TaskError: if it fails.
    """
    try:
        return model.run(feed)
    except LowRankError:
        raise
    except Exception as error:
        raise TaskError(
            f"the model does not run on the task's data ({type(error).__name__}: {first_line(error)}); does its "
            "tokenizer belong to it?"
        ) from None


@dataclass(frozen=True)
class Texts:
    """How texts become the inputs of a model, and its outputs vectors."""

    signature: Signature
    encode: Encode
    pooling: str

    @classmethod
    def of(cls, spec: str, dense: Backend) -> Texts:
        """For a model that reads text.

        Raises:
            TaskError: if it does not, or has no tokenizer.
            CalibrationError: if that cannot be used.
        """
        signature = dense.signature
        assert isinstance(signature, Signature)
        if not signature.reads_tokens:
            raise TaskError(f"--task {spec}: the model reads {', '.join(signature.names)}, not text")
        if dense.tokenizer is None:
            raise TaskError(f"--task {spec}: the model comes without a tokenizer; give --tokenizer tokenizer.json")
        return cls(signature, open_tokenizer(dense.tokenizer), pooling_of(dense))

    def batches(self, texts: Sequence[str]) -> Batches:
        """Token ids in batches; what is longer than the model's context is cut.

        Raises:
            CalibrationError: if the tokenizer cannot be used.
            TaskError: if it makes nothing of a text.
        """
        lines = [tuple(ids) for ids in self.encode(list(texts), self.signature.max_sequence, True)]
        if not all(lines):
            empty = texts[lines.index(())]
            raise TaskError(f"the model's tokenizer makes no tokens of {empty[:40]!r}; leave that out")
        feeds: list[Feed] = []
        unique = sorted(dict.fromkeys(lines), key=len)
        start = 0
        while start < len(unique):
            length = len(unique[start])
            rows = [ids for ids in unique[start : start + max(1, min(BATCH_ROWS, BATCH_TOKENS // length))]]
            rows = [ids for ids in rows if len(ids) == length]
            feeds.append(token_feed(rows, self.signature))
            start += len(rows)
        place = {ids: i for i, ids in enumerate(unique)}
        return Batches(tuple(feeds), np.array([place[ids] for ids in lines]))

    def vectors(self, model: Runs, batches: Batches) -> Array:
        """The embedding of every text, or the scores of its classes.

        Raises:
            TaskError: if the model does not run.
        """
        return batches.run(model, lambda output, _: pool(output, self.pooling))


def output_dims(dense: Backend) -> int:
    """How many axes a model's output has: three for one vector, or one row of scores, a token.

    Raises:
        TaskError: if it does not run.
    """
    signature = dense.signature
    assert isinstance(signature, Signature)
    return run(dense, signature.example(1, min(8, signature.max_sequence))).ndim


def needs_embeddings(spec: str, dense: Backend) -> None:
    """Nothing, if a model gives vectors.

    Raises:
        TaskError: if it gives the scores of tokens or of classes.
    """
    assert isinstance(dense.signature, Signature)
    if dense.output_kind == "logits":
        what = "tokens" if output_dims(dense) > 2 else "classes"
        raise TaskError(
            f"--task {spec}: the model gives scores of {what} ({dense.signature.output}), not embeddings; "
            "give the model without its head, or try fidelity, " + ("lm:FILE" if what == "tokens" else "classify:FILE")
        )
