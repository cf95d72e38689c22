"""Fidelity of a model that reads the same texts as other tokens than the dense one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lowrank.backends.base import Backend, Outputs, signature_of
from lowrank.backends.inputs import Feed
from lowrank.backends.outputs import Output
from lowrank.calibrate.batches import token_batches, token_feed
from lowrank.calibrate.judging_set import JudgingSet
from lowrank.calibrate.text_sets import COUNTS, sets_of_texts
from lowrank.calibrate.tokenize import open_tokenizer
from lowrank.core.distance import Array, rows_of
from lowrank.errors import CalibrationError
from lowrank.evaluate.judges import Judges
from lowrank.progress import Track, silent
from lowrank.results.parts import Quality

NOT = "fidelity was not measured: {}"


def quality_on_texts(dense: Backend, other: Backend, track: Track = silent) -> tuple[Quality | None, list[str]]:
    """How near a model's outputs are to the dense one's on built-in texts, which each reads by its own tokenizer.

    Measured of outputs that are one vector for each text. Where they are of tokens there is nothing to set side by
    side, as the texts have other tokens.

    Args:
        dense: the model, with its tokenizer.
        other: the one with another tokenizer.
        track: shows progress.

    Returns:
        What was measured, and sentences on what was not, and why.
    """
    signature = dense.signature
    if isinstance(signature, str) or isinstance(other.signature, str) or not signature.reads_tokens:
        return None, [NOT.format("the model cannot be run on text of any length alone")]
    if dense.tokenizer is None or other.tokenizer is None or signature.fixed_length is not None:
        return None, [NOT.format("the model cannot be run on text of any length alone")]
    shown = dense.outputs(signature.example(2, min(8, signature.max_sequence)))
    of_tokens = [o.name for o in signature.compared if not _is_of_texts(o, shown[o.name])]
    if of_tokens:
        why = f"{of_tokens[0]} is of each token, and the texts are read as other tokens than before"
        return None, [NOT.format(why)]
    ids_of: dict[bytes, list[int]] = {}
    sets: list[JudgingSet] = []
    try:
        tokenizer = open_tokenizer(other.tokenizer)
        for of, count in zip(sets_of_texts(dense), COUNTS, strict=True):
            lines = of.lines[:count]
            read = tokenizer.encode(list(of.texts[:count]), of.most, True)
            ids_of |= {_key(before): after for before, after in zip(lines, read, strict=True)}
            feeds = () if of.left_out else token_batches(lines, signature)
            sets.append(JudgingSet(of.name, feeds, "built-in", f"{len(lines)} texts", of.left_out))
    except CalibrationError as error:
        return None, [NOT.format(error)]
    if not any(each.feeds for each in sets):
        return None, [NOT.format("the built-in text, which is English, is unknown to the model's tokenizer")]
    judges = Judges(dense, sets)
    return judges.quality_of(_Reread(other, ids_of), track).if_finite, judges.notes


def _key(ids: Sequence[int] | Array) -> bytes:
    return np.asarray(ids, np.int64).tobytes()


def _is_of_texts(output: Output, shown: Array) -> bool:
    """Whether an output has one row for each text."""
    return output.kind == "embedding" or (shown.ndim == 2 and not output.over_positions)


class _Reread:
    """A model that is given the dense model's token ids, and reads the texts behind them as its own.

    Args:
        inner: the model.
        ids_of: from the dense model's ids of a text to its own.
    """

    def __init__(self, inner: Backend, ids_of: dict[bytes, list[int]]) -> None:
        self._inner, self._ids_of = inner, ids_of
        self._signature = signature_of(inner)

    def outputs(self, feed: Feed) -> Outputs:
        """One row for each text, whatever the lengths are."""
        lines = [self._ids_of[_key(ids)] for ids in feed["input_ids"]]
        places: dict[int, list[int]] = {}
        for place, ids in enumerate(lines):
            places.setdefault(len(ids), []).append(place)
        found: dict[str, Array] = {}
        for chosen in places.values():
            part = token_feed([lines[place] for place in chosen], self._signature)
            outputs = self._inner.outputs(part)
            for output in self._signature.compared:
                rows = self._rows(output, outputs[output.name], part)
                found.setdefault(output.name, np.zeros((len(lines), *rows.shape[1:]), rows.dtype))[chosen] = rows
        return found

    def outputs_of(self, feeds: Sequence[Feed]) -> Iterator[Outputs]:
        """The same for each of some batches."""
        return map(self.outputs, feeds)

    def run(self, feed: Feed) -> Array:
        """The output that the model is about."""
        return self.outputs(feed)[self._signature.output]

    def _rows(self, output: Output, value: Array, feed: Feed) -> Array:
        """The vector of each text, or its scores as they are."""
        if output.kind != "embedding":
            return value
        return rows_of(value, output.kind, self._signature.counted(feed, output), output.over_positions)
