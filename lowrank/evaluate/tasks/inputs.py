"""From texts to batches, and from a model's outputs to one vector a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.inputs import Feed, Signature
from lowrank.calibrate.batches import token_batches
from lowrank.calibrate.readable import reading_of
from lowrank.calibrate.tokenize import Tokenizer, open_tokenizer
from lowrank.core.distance import Array
from lowrank.core.share import percent
from lowrank.errors import LowRankError, TaskError, first_line
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.tasks.model_files import pool


@dataclass(frozen=True)
class Batches:
    """Samples of one length each, so that there is no padding; equal ones are run once."""

    feeds: tuple[Feed, ...]
    places: Array
    """For every sample, its row among those of all feeds one after the other."""


def run(model: Runs, feed: Feed, output: str) -> Array:
    """One output of a forward pass, by its name.

    Raises:
        TaskError: if it fails.
    """
    try:
        return model.outputs(feed)[output]
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
    tokenizer: Tokenizer
    output: str
    """The name of the output that is read."""

    @classmethod
    def of(cls, spec: str, dense: Backend, embeds: bool = False) -> Texts:
        """For a model that reads text.

        Args:
            spec: the task, for errors.
            dense: the model.
            embeds: whether it has to give embeddings.

        Raises:
            TaskError: if it does not, or has no tokenizer.
            CalibrationError: if the tokenizer cannot be used.
        """
        signature = signature_of(dense)
        if not signature.reads_tokens:
            raise TaskError(f"--task {spec}: the model reads {', '.join(signature.names)}, not text")
        if dense.tokenizer is None:
            raise TaskError(f"--task {spec}: the model comes without a tokenizer; give --tokenizer tokenizer.json")
        tokenizer = open_tokenizer(dense.tokenizer)
        if not embeds or signature.output_kind != "logits":
            return cls(signature, tokenizer, signature.output)
        embedding = next((output.name for output in signature.compared if output.kind == "embedding"), None)
        if embedding is None:
            what, other = ("tokens", "lm:FILE") if output_of_example(dense).ndim > 2 else ("classes", "classify:FILE")
            raise TaskError(
                f"--task {spec}: the model gives scores of {what} ({signature.output}), not embeddings; "
                f"give the model without its head, or try fidelity, {other}"
            )
        return cls(signature, tokenizer, embedding)

    def batches(self, texts: Sequence[str]) -> Batches:
        """Token ids in batches; what is longer than the model's context is cut.

        Raises:
            CalibrationError: if the tokenizer cannot be used.
            TaskError: if it makes nothing of a text.
        """
        lines = [tuple(ids) for ids in self.tokenizer.encode(list(texts), self.signature.max_sequence, True)]
        if not all(lines):
            empty = texts[lines.index(())]
            raise TaskError(f"the model's tokenizer makes no tokens of {empty[:40]!r}; leave that out")
        self.check_readable(lines)
        unique = sorted(dict.fromkeys(lines), key=len)
        place = {ids: i for i, ids in enumerate(unique)}
        return Batches(token_batches(unique, self.signature), np.array([place[ids] for ids in lines]))

    def check_readable(self, samples: Sequence[Sequence[int]]) -> None:
        """Refuse texts of which the tokenizer knows next to nothing.

        Raises:
            TaskError: if it does.
        """
        reading = reading_of(self.tokenizer, samples)
        if reading.is_unreadable:
            raise TaskError(
                f"{percent(reading.unknown)} of the task's text is unknown to the model's tokenizer, so that its "
                "scores would say nothing; give text of the model's language, or --tokenizer if it has another"
            )

    def vectors(self, model: Runs, batches: Batches) -> Array:
        """The embedding of every text, or the scores of its classes: a row each, in order.

        Raises:
            TaskError: if the model does not run.
        """
        pooling = self.signature.pooling
        rows = [pool(run(model, feed, self.output), pooling) for feed in batches.feeds]
        return np.concatenate(rows)[batches.places]


def output_of_example(dense: Backend) -> Array:
    """The output that a model is about, for one random sample: with three axes a vector, or scores, for each token.

    Raises:
        TaskError: if it does not run.
    """
    signature = signature_of(dense)
    return run(dense, signature.example(1, min(8, signature.max_sequence)), signature.output)
