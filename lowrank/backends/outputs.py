"""What a model gives: its outputs by name, and what each of them is for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

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
OWN_PROBLEMS = ("regression", "multi_label_classification")
"""Problems of a config's `problem_type` whose scores are numbers of their own, not a choice."""
UNIT = 1e-4
"""Vectors whose length differs from 1 by less are taken for unit vectors."""
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
    """Whether its last axis is the positions of the sample: logits choose one of them, anything else is of each."""
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


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of a model shows of its outputs."""

    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]
    """By name; whole numbers in their own type."""
    shorter: Callable[[], Mapping[str, NDArray[Any]]]
    """The outputs for samples that are one step shorter; none if there can be no such run."""
    vocabulary: int = 0
    """How many tokens the model knows; 0 if it reads none."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the file beside the model says of it."""


def as_shown(output: Output, run: Run) -> Output:
    """An output with what its numbers, its shape and the model's config tell beyond its name.

    Whole numbers are choices. One score for each token is no choice among the tokens, unless the model answers
    questions: each says something of its own. Nor are scores that rebuild the input, or that a config calls the result
    of a regression. A vector of length 1 for each sample is an embedding, and numbers for each token, as many as there
    are tokens in the vocabulary, are logits.
    """
    value = run.outputs[output.name]
    if value.dtype.kind in "iub":
        return replace(output, kind="choices", over_positions=_are_positions(output, run))
    if output.kind == "logits":
        return _no_choice(output, value, run)
    if output.kind == "values" and output.name not in HIDDEN and "hidden" not in output.name:
        if _are_positions(output, run):
            answers = _answers_questions(run.config)
            return replace(output, kind="logits" if answers else "values", over_positions=True)
        if (value.ndim == 3 and value.shape[-1] == run.vocabulary) or _are_labels(value, run):
            return replace(output, kind="logits")
        if value.ndim == 2 and value.shape[1] > 1 and np.allclose(np.linalg.norm(value, axis=1), 1, atol=UNIT):
            return replace(output, kind="embedding")
    return output


def _no_choice(output: Output, value: NDArray[Any], run: Run) -> Output:
    """An output that is called logits, as values if it holds no scores to choose from."""
    if output.over_positions:
        return output
    if _are_positions(output, run):
        return replace(output, kind="values", over_positions=True)
    own = run.config.get("problem_type") in OWN_PROBLEMS or _rebuilds(value, run.inputs) or _of_pixels(run.config)
    return replace(output, kind="values") if own else output


def _are_positions(output: Output, run: Run) -> bool:
    """Whether an output has one number for each token: its second axis, which is the last, follows their number."""
    ids, shape = run.inputs.get("input_ids"), run.outputs[output.name].shape
    if ids is None or shape != ids.shape:
        return False
    shorter = run.shorter().get(output.name)
    return shorter is not None and shorter.shape == (shape[0], shape[1] - 1)


def _rebuilds(value: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> bool:
    """Whether an output has a number for each pixel of an image, or for each of its places."""
    images = [each for each in inputs.values() if each.ndim == 4 and each.dtype.kind == "f"]
    return any(value.shape == (len(each), *each.shape[2:]) or value.shape == each.shape for each in images)


def _of_pixels(config: Mapping[str, Any]) -> bool:
    """Whether a model of images was trained to fill in pixels, whose numbers it calls logits."""
    return any(str(name).endswith("MAEForPreTraining") for name in config.get("architectures") or ())


def _answers_questions(config: Mapping[str, Any]) -> bool:
    return any(str(name).endswith("ForQuestionAnswering") for name in config.get("architectures") or ())


def _are_labels(value: NDArray[Any], run: Run) -> bool:
    """Whether the last axis has as many numbers as the config names labels, and nothing else is called scores."""
    labels: Any = run.config.get("id2label")
    named = isinstance(labels, dict) and run.config.get("problem_type") not in OWN_PROBLEMS
    count = len(cast("dict[str, str]", labels)) if named else 0
    fits = value.ndim in (2, 3) and value.shape[-1] == count > 1
    return fits and not any(LOGITS.search(name) for name in run.outputs)


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
