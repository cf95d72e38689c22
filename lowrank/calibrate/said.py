"""`--calib self`: a causal language model is calibrated on what it says itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.artifacts.files import hash_json
from lowrank.backends.base import Backend, signature_of
from lowrank.calibrate.batches import token_batches, token_feed
from lowrank.calibrate.builtin import builtin_text
from lowrank.calibrate.causal import causal_scores
from lowrank.calibrate.data import Calibration
from lowrank.calibrate.folds import split_folds
from lowrank.calibrate.tokenize import Tokenizer, open_tokenizer, usual_maximum
from lowrank.errors import CalibrationError

SAMPLES = 128
"""Samples at most: each token costs a run over all before it, for there is no cache."""
LENGTH = 128
"""Tokens of a sample at most, its prompt among them."""
PROMPT = 4
"""Tokens of a prompt: the beginning of a built-in line."""
NUMBERS = 1 << 26
"""Scores in memory at once, unless one sample alone has more."""


def said_calibration(backend: Backend, samples: int = SAMPLES, seed: int = 0) -> Calibration:
    """Texts that a causal language model continues from a few words, each token drawn as the model expects it.

    Args:
        backend: the model, with its tokenizer.
        samples: how many texts, at most `SAMPLES`.
        seed: of the draws.

    Raises:
        CalibrationError: if the model is no causal language model, or has no tokenizer.
    """
    signature = backend.signature
    if isinstance(signature, str):
        raise CalibrationError(f"--calib self: the model cannot be run: {signature}; give --calib none")
    if not signature.reads_tokens or backend.tokenizer is None:
        raise CalibrationError(
            "--calib self is for models that read text and come with a tokenizer; give --tokenizer tokenizer.json, or "
            "inputs as .npz"
        )
    scores = causal_scores(backend)
    if isinstance(scores, str):
        raise CalibrationError(
            f"--calib self is for causal language models, and this is none: {scores}; give --calib FILE, or leave "
            "it out for the built-in text"
        )
    length = min(LENGTH, usual_maximum(backend))
    prompts = _prompts(open_tokenizer(backend.tokenizer), min(samples, SAMPLES), length)
    rows, rng = max(1, NUMBERS // (length * scores.classes)), np.random.default_rng(seed)
    said = [
        ids
        for i in range(0, len(prompts), rows)
        for ids in _continued(backend, scores.output, prompts[i : i + rows], length, rng)
    ]
    folds = (token_batches([said[i] for i in fold], signature) for fold in split_folds(len(said)))
    facts: dict[str, Any] = {
        "text": "self",
        "samples": len(said),
        "tokens": len(said) * length,
        "hash": hash_json(said),
    }
    note = f"calibrated on {len(said)} texts of {length} tokens that the model said itself"
    return Calibration(*folds, backend=backend, provenance=facts, notes=(note,))


def _prompts(tokenizer: Tokenizer, count: int, length: int) -> NDArray[np.int64]:
    """The beginnings of so many lines, with what the tokenizer puts before a text: lines x tokens."""
    lines = builtin_text("lines")
    size = min(PROMPT, length - 1)
    wanted = [ids[:size] for ids in tokenizer.encode(lines[: 8 * count], None, False) if len(ids) >= size][:count]
    if not wanted:
        raise CalibrationError("--calib self: the model's tokenizer makes no tokens of English; give --calib FILE")
    whole, bare = (tokenizer.encode([lines[0]], None, special)[0] for special in (True, False))
    before = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return np.array([[*whole[:before], *ids][:length] for ids in wanted])


def _continued(
    backend: Backend, output: str, prompts: NDArray[np.int64], length: int, rng: np.random.Generator
) -> list[list[int]]:
    """The prompts and what the model says after them, as long as wanted, drawn at temperature 1."""
    signature, ids = signature_of(backend), prompts
    while ids.shape[1] < length:
        scores = backend.outputs(token_feed(ids.tolist(), signature))[output][:, -1].astype(np.float64)
        # The largest of scores with Gumbel noise is a draw from their softmax.
        drawn = (scores + rng.gumbel(size=scores.shape)).argmax(1)
        ids = np.concatenate([ids, drawn[:, None]], 1)
    return ids.tolist()
