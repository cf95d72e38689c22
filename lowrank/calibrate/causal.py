"""Whether a model is a causal language model: found out by running it, whatever its class is called."""

from __future__ import annotations

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.errors import LowRankError, first_line


def causal_vocabulary(dense: Backend) -> int | str:
    """The size of the vocabulary, if the scores of a token do not depend on those after it; else the reason why the
    model is no causal language model.

    Args:
        dense: a model that reads tokens.
    """
    signature = signature_of(dense)
    feed = signature.example(1, min(8, signature.max_sequence))
    try:
        before = dense.run(feed)
        if dense.output_kind != "logits" or before.ndim != 3 or before.shape[1] != feed["input_ids"].shape[1]:
            return f"it gives {signature.output} of shape {' x '.join(map(str, before.shape))}, not scores of tokens"
        ids = feed["input_ids"].copy()
        ids[:, -1] = (ids[:, -1] + 1) % before.shape[2]
        after = dense.run({**feed, "input_ids": ids})
    except LowRankError:
        raise
    except Exception as error:
        return f"it does not run ({type(error).__name__}: {first_line(error)})"
    if "decoder_input_ids" in feed or not np.allclose(before[:, :-1], after[:, :-1], rtol=1e-3, atol=1e-4):
        return "it sees the tokens that it is to predict, as masked language models do"
    return before.shape[2]
