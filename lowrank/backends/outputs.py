"""What a model gives: its outputs by name, and what each of them is for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowrank.core.distance import OutputKind

OUTPUT = "output"
"""The name of the only output of a module that names none."""
MAIN_OUTPUTS = ("logits", "logits_per_image", "sentence_embedding", "text_embeds", "image_embeds", "last_hidden_state")
"""Names of what a model is about, if it gives several; the first that it has is taken where one is needed."""
LOGITS = re.compile(r"(^|_)logits?(_|$)")
"""Names of scores."""
MAPS = re.compile(r"(^|_)(masks?|mask)(_|$)")
"""Names of maps of which each number is a yes or no of its own, whatever else they are called."""
EMBEDDINGS = re.compile(r"(^|_)(embeds?|embeddings?|pooler_output)(_\d+)?$")
"""Names of outputs that are embeddings; `token_embeddings` are not."""
POSITIONS = ("start_logits", "end_logits")
"""Scores of the positions of a sample, of which one is chosen: the first and the last token of an answer."""
HIDDEN = ("last_hidden_state", "token_embeddings")
"""Names of hidden states that are pooled where a file beside the model says how."""
CACHES = re.compile(r"^(past|present|cache|mems|state)s?([._]|$)")
"""Names of what is kept for the next token."""


@dataclass(frozen=True, slots=True)
class Output:
    """One output: its name, and what it is for."""

    name: str
    kind: OutputKind = "values"
    is_pooled: bool = False
    """Whether it holds hidden states of which users take an embedding, as `Signature.pooling` says."""
    over_positions: bool = False
    """Whether its classes are the positions of the sample."""
    is_decoded: bool = False
    """Whether it has the positions of what a decoder reads, where the model has an encoder, too."""
    unused: str = ""
    """Why nobody uses it, so that results are not judged by it; empty if it counts."""


def output_named(name: str, decoded: bool = False) -> Output:
    """An output as its name tells what it is for, in the words of the results of `transformers`.

    Args:
        name: of the output.
        decoded: whether the model has an encoder and a decoder; what the encoder gives says so in its name.

    Example:
        >>> [output_named(name).kind for name in ("end_logits", "image_embeds", "pred_boxes", "token_embeddings")]
        ['logits', 'embedding', 'values', 'values']
    """
    kind: OutputKind = "values"
    if LOGITS.search(name) and not MAPS.search(name):
        kind = "logits"
    elif EMBEDDINGS.search(name) and not name.startswith("token"):
        kind = "embedding"
    return Output(name, kind, False, name in POSITIONS, decoded and not name.startswith("encoder"))


def main_of(outputs: Sequence[Output]) -> Output:
    """What a model is about: the first of `MAIN_OUTPUTS` that it has, else the first that counts."""
    by_name = {output.name: output for output in outputs}
    found = [by_name[name] for name in MAIN_OUTPUTS if name in by_name]
    return (found or [output for output in outputs if not output.unused] or [*outputs, Output(OUTPUT)])[0]


def pooled(outputs: Sequence[Output]) -> tuple[Output, ...]:
    """The outputs of a model whose hidden states are pooled; an embedding that it makes in another way is not used."""
    names = {output.name for output in outputs} & {*HIDDEN} or {main_of(outputs).name}
    return tuple(
        replace(output, kind="embedding", is_pooled=True)
        if output.name in names
        else replace(output, unused="the hidden states are pooled instead")
        if output.name == "pooler_output"
        else output
        for output in outputs
    )
