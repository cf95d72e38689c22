"""Which tokens a model's scores are of, and by which it makes them: found out by running it, whatever its class is
called."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.errors import LowRankError, first_line


@dataclass(frozen=True)
class TokenScores:
    """What a model gives for some tokens: scores of classes, for each token."""

    classes: int
    looks_ahead: bool
    """Whether the scores of a token change with the tokens after it."""


def token_scores(dense: Backend) -> TokenScores | str:
    """What is known of a model's scores of tokens after two runs of it, or why it gives none.

    Args:
        dense: a model that reads tokens.
    """
    signature = signature_of(dense)
    feed = signature.example(1, min(8, signature.max_sequence))
    high = next(i.high for i in signature.inputs if i.name == "input_ids")
    try:
        before = dense.run(feed)
        if dense.output_kind != "logits" or before.ndim != 3 or before.shape[1] != feed["input_ids"].shape[1]:
            return f"it gives {signature.output} of shape {' x '.join(map(str, before.shape))}, not scores of tokens"
        ids = feed["input_ids"].copy()
        ids[:, -1] = (ids[:, -1] + 1) % max(high, 2)
        after = dense.run({**feed, "input_ids": ids})
    except LowRankError:
        raise
    except Exception as error:
        return f"it does not run ({type(error).__name__}: {first_line(error)})"
    ahead = "decoder_input_ids" in feed or not np.allclose(before[:, :-1], after[:, :-1], rtol=1e-3, atol=1e-4)
    return TokenScores(before.shape[2], ahead)


def causal_vocabulary(dense: Backend) -> int | str:
    """The size of the vocabulary, if the scores of a token do not depend on those after it; else the reason why the
    model is no causal language model.

    Args:
        dense: a model that reads tokens.
    """
    scores = token_scores(dense)
    if isinstance(scores, str):
        return scores
    if scores.looks_ahead:
        return "it sees the tokens that it is to predict, as masked language models do"
    return scores.classes
