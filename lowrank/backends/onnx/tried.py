"""What running a graph tells of its inputs and outputs: how long a sequence it takes, and what its outputs are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from lowrank.backends.inputs import NOT_RUN, TRIED, Feed, Signature, shown_by
from lowrank.errors import first_line

RunGraph = Callable[[Feed, Sequence[str]], Sequence[NDArray[Any]]]
"""From a feed and names of outputs to these outputs."""
LENGTHS = (4, 8, 16, 32, 64, 128)
"""Sequences that are tried: no more is needed for calibration or timing."""
WAVES = (512, 2048, 16384)
"""What is tried if none of them is long enough, and the input is one of floating numbers."""


def tried(declared: Signature, run: RunGraph) -> Signature | str:
    """What a graph declares, with the longest sequence of `LENGTHS` that it takes; why it does not run."""
    longest, failure = 0, ""
    for sequence in _sequences(declared):
        try:
            run(declared.example(1, sequence), declared.output_names)
        except Exception as error:
            failure = first_line(error)
            if longest:
                break
            continue
        if sequence > LENGTHS[-1]:
            # Samples of sound: below some number of them there is not one step.
            inputs = (replace(i, offset=sequence) if "sequence" in i.dims else i for i in declared.inputs)
            return replace(declared, inputs=tuple(inputs))
        longest = sequence
    if not longest:
        return f"{NOT_RUN}{failure}"
    return replace(declared, max_sequence=min(longest, declared.max_sequence)) if declared.has_sequence else declared


def _sequences(declared: Signature) -> Iterator[int]:
    yield from LENGTHS if declared.has_sequence else (1,)
    if any(i.is_floating and "sequence" in i.dims for i in declared.inputs):
        yield from WAVES


def with_kinds(signature: Signature, run: RunGraph, config: Mapping[str, Any], feed: Feed | None = None) -> Signature:
    """The signature with what a run and the config beside a graph tell of its outputs.

    Args:
        signature: with the names of its outputs.
        run: runs the graph.
        config: the content of the file.
        feed: what is run; random inputs if not given.
    """
    feed = feed or signature.example(2, min(TRIED, signature.max_sequence))
    names = signature.output_names

    def again(feed: Feed) -> Mapping[str, NDArray[Any]]:
        return dict(zip(names, run(feed, names), strict=True))

    try:
        given = again(feed)
    except Exception:
        # A batch of one is all that some graphs take: names must do.
        return signature
    return shown_by(signature, feed, given, again, config)
