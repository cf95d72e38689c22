"""Masked language models: which token they fill in, and samples in which some tokens are masked for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.unrun import Unrun
from lowrank.calibrate.causal import token_scores
from lowrank.calibrate.tokenize import open_tokenizer
from lowrank.core.distance import Array
from lowrank.errors import CalibrationError

MASKED = 0.15
"""Of the tokens of a sample, as such models are trained (Devlin et al. 2019, section 3.1)."""


def with_mask_token(backend: Backend) -> Backend:
    """The model with the token that it fills in, if it is a masked language model: it scores a vocabulary for every
    token, its tokenizer has a mask, and what it scores for a token depends on later ones."""
    signature = backend.signature
    if isinstance(signature, str) or signature.mask_token is not None or backend.tokenizer is None:
        return backend
    try:
        mask = open_tokenizer(backend.tokenizer).mask
    except CalibrationError:
        # A model that is fed with arrays does not need it.
        return backend
    if mask is None or not fills_in(backend, mask):
        return backend
    return backend.fed_with(replace(signature, mask_token=mask))


def fills_in(backend: Backend, token: int = 0) -> bool:
    """Whether a model scores a vocabulary, which has a token, for every token, and sees the later ones; of what cannot
    be run it is not known."""
    signature = backend.signature
    if isinstance(signature, str) or isinstance(backend, Unrun):
        return False
    ids = next((i for i in signature.inputs if i.name == "input_ids"), None)
    if ids is None or "decoder_input_ids" in signature.names or token >= ids.high:
        return False
    scores = token_scores(backend)
    # What classifies tokens has few classes.
    return not isinstance(scores, str) and scores.looks_ahead and scores.classes > max(token, ids.high // 2)


def masked_lines(lines: Sequence[Sequence[int]], backend: Backend) -> list[list[int]]:
    """Samples of token ids as a model is fed with them: with masks for a masked language model, else as they are."""
    hide = _masks_of(backend)
    return [list(ids) if hide is None else hide(np.asarray(ids)).tolist() for ids in lines]


def masked_arrays(arrays: Feed, backend: Backend) -> Feed:
    """The same of samples as arrays, one an input."""
    hide = _masks_of(backend)
    return arrays if hide is None else {**arrays, "input_ids": np.stack([hide(ids) for ids in arrays["input_ids"]])}


def _masks_of(backend: Backend) -> Callable[[Array], Array] | None:
    """What masks a sample for a masked language model; None for any other."""
    signature = backend.signature
    assert isinstance(signature, Signature)
    if signature.mask_token is None or backend.tokenizer is None:
        return None
    return partial(_masked, mask=signature.mask_token, special=open_tokenizer(backend.tokenizer).special)


def _masked(ids: Array, mask: int, special: Collection[int]) -> Array:
    """One sample with some of its tokens masked, always the same ones; one that holds a mask already stays."""
    open_places = np.flatnonzero(~np.isin(ids, list(special)))
    if not len(open_places) or (ids == mask).any():
        return ids
    # The sample itself is the seed, so that it is masked alike wherever it is met.
    rng = np.random.default_rng(np.asarray(ids, np.uint64))
    chosen = rng.choice(open_places, max(1, round(MASKED * len(open_places))), replace=False)
    filled = ids.copy()
    filled[chosen] = mask
    return filled
