"""Decoding: whether the graphs of an encoder and a decoder choose the tokens that the torch module chooses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.inputs import MASK, Feed, Signature, batch_size
from lowrank.errors import ExportError, first_line
from lowrank.evaluate.graph import open_graph

if TYPE_CHECKING:
    from lowrank.backends.torch import ModuleBackend

ROWS, LENGTH, NEW = 2, 6, 12
"""Samples, what each has of tokens to read, half of the second one padding, and tokens that are written."""
ENCODED, SCORES = 1e-4, 1e-3
"""The largest difference from torch, as a share of the largest number: of vectors, and of scores after all steps."""
PAST, PRESENT = "past_key_values", "present"


class Decoding:
    """A text that graphs of an encoder and a decoder write, token by token."""

    def __init__(self, encoder: Path, first: Path, following: Path | None = None) -> None:
        """Open the graphs.

        Args:
            encoder: its graph.
            first: the decoder that starts a text; or the one that starts it and goes on with it.
            following: the decoder that goes on with it, where that is another one.
        """
        self._encoder, self._first = open_graph(encoder), open_graph(first)
        self._following = self._first if following is None else open_graph(following)
        self._feed: dict[str, Any] = {}
        self._past: dict[str, Any] = {}

    def read(self, feed: Feed) -> NDArray[Any]:
        """Start anew with what the encoder reads; what it gives."""
        (states,) = self._encoder.run(None, dict(feed))
        self._feed, self._past = {"encoder_hidden_states": states}, {}
        if MASK in feed:
            self._feed["encoder_attention_mask"] = feed[MASK]
        return states

    def write(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """Scores of the next token after some more tokens, samples x vocabulary."""
        session = self._following if self._past else self._first
        specs = {spec.name: spec for spec in session.get_inputs()}
        feed = {"input_ids": tokens, "use_cache_branch": np.array([bool(self._past)]), **self._feed}
        feed |= self._past or {
            name: np.zeros([len(tokens), spec.shape[1], 0, spec.shape[3]], np.float32)
            for name, spec in specs.items()
            if name.startswith(PAST)
        }
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(None, {n: v for n, v in feed.items() if n in specs}), strict=True))
        self._past = {
            **self._past,
            **{name.replace(PRESENT, PAST): value for name, value in found.items() if name.startswith(PRESENT)},
        }
        return found["logits"][:, -1]

    def greedy(self, feed: Feed, start: int, new: int) -> NDArray[Any]:
        """The likeliest tokens, samples x new."""
        self.read(feed)
        step, chosen = np.full((batch_size(feed), 1), start), []
        for _ in range(new):
            step = self.write(step).argmax(-1)[:, None]
            chosen.append(step)
        return np.concatenate(chosen, 1)


def check_decoding(backend: ModuleBackend, folder: Path, exact: bool = True) -> None:
    """Write a text both ways: torch without a cache, graphs token by token with it, by two decoders and by the one that
    stands for both.

    Args:
        backend: the torch model.
        folder: of the graphs that `export_seq2seq` writes.
        exact: whether they must give what torch gives; rounded ones need not.

    Raises:
        ExportError: if a graph does not run, or gives something else.
    """
    from lowrank.backends.torch.export_seq2seq import ENCODER, FIRST, MERGED, NEXT, for_encoder

    assert isinstance(backend.signature, Signature)
    feed = for_encoder(backend.signature.example(ROWS, LENGTH, padded=MASK in backend.signature.names))
    states, tokens, scores = _by_torch(backend, feed)
    for names in ((FIRST, NEXT), (MERGED,)):
        what = " and ".join(names)
        try:
            text = Decoding(*(folder / f"{name}.onnx" for name in (ENCODER, *names)))
            read = text.read(feed)
            written = np.stack([text.write(tokens[:, i : i + 1]) for i in range(NEW)], 1)
        except Exception as error:
            raise ExportError(f"{ENCODER} with {what} does not generate: {first_line(error)}") from None
        if exact:
            _same(ENCODER, states, read, ENCODED, feed.get(MASK))
            _same(what, scores, written, SCORES)
            wrong = (scores.argmax(-1) != written.argmax(-1)).any(0)
            if wrong.any():
                raise ExportError(f"{what} chooses other tokens than torch from the {wrong.argmax() + 1}. new one on")


def _by_torch(backend: ModuleBackend, feed: Mapping[str, Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """What the encoder gives, the tokens that the decoder reads greedily, and the scores of the next one after each."""
    import torch

    from lowrank.backends.torch.export_seq2seq import IDS, encoded
    from lowrank.backends.torch.tensors import module_in_float32

    module: Any = module_in_float32(backend.module)
    values = {name: torch.from_numpy(value) for name, value in feed.items()}
    first = getattr(module.config, "decoder_start_token_id", None) or 0
    ids, scores = torch.full((ROWS, 1), first), []
    with torch.no_grad():
        states = encoded(module, values)
        for _ in range(NEW):
            scores.append(module(**values, **{IDS: ids}, use_cache=False, return_dict=True).logits[:, -1])
            ids = torch.cat([ids, scores[-1].argmax(-1, keepdim=True)], 1)
    return states.numpy(), ids[:, :NEW].numpy(), torch.stack(scores, 1).numpy()


def _same(
    what: str, ours: NDArray[Any], theirs: NDArray[Any], allowed: float, mask: NDArray[Any] | None = None
) -> None:
    difference = np.where(ours == theirs, 0, np.abs(ours - theirs))
    if mask is not None and mask.shape == ours.shape[:2]:
        difference = difference[mask == 1]
    share = difference.max(initial=0.0) / np.abs(ours[np.isfinite(ours)]).max(initial=1e-6)
    # Not a number is a difference, too.
    if not share <= allowed:
        raise ExportError(f"{what} differs from torch by {share:.1e} of the largest number")
