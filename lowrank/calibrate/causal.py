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

    output: str
    """Its name."""
    classes: int
    looks_ahead: bool
    """Whether the scores of a token change with the tokens after it."""


def token_scores(dense: Backend) -> TokenScores | str:
    """What is known of a model's scores of tokens after two runs of it, or why it gives none. They are the first of its
    outputs that are scores of every token.

    Args:
        dense: a model that reads tokens.
    """
    signature = signature_of(dense)
    feed = signature.example(1, min(8, signature.max_sequence))
    high = next(i.high for i in signature.inputs if i.name == "input_ids")
    try:
        given, length = dense.outputs(feed), feed["input_ids"].shape[1]
        scored = [y for y in signature.outputs if y.kind == "logits" and given[y.name].shape[1:2] == (length,)]
        name = next((y.name for y in scored if given[y.name].ndim == 3), None)
        if name is None:
            shape = " x ".join(map(str, given[signature.output].shape))
            return f"it gives {signature.output} of shape {shape}, not scores of tokens"
        before = given[name]
        ids = feed["input_ids"].copy()
        ids[:, -1] = (ids[:, -1] + 1) % max(high, 2)
        after = dense.outputs({**feed, "input_ids": ids})[name]
    except LowRankError:
        raise
    except Exception as error:
        return f"it does not run ({type(error).__name__}: {first_line(error)})"
    ahead = "decoder_input_ids" in feed or not np.allclose(before[:, :-1], after[:, :-1], rtol=1e-3, atol=1e-4)
    return TokenScores(name, before.shape[2], ahead)


def causal_scores(dense: Backend) -> TokenScores | str:
    """What a causal language model gives, whose scores of a token do not depend on those after it; else the reason why
    the model is none.

    Args:
        dense: a model that reads tokens.
    """
    scores = token_scores(dense)
    if not isinstance(scores, str) and scores.looks_ahead:
        return "it sees the tokens that it is to predict, as masked language models do"
    return scores
