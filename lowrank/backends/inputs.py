"""How a model is fed, and what it gives: the names, types and shapes of its inputs, and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.outputs import Output, Run, as_shown, main_of, pooled
from lowrank.core.distance import OutputKind

Dim = int | str
"""A fixed size, or the name of one that may vary: `batch`, `sequence`, any other, or a sum: `past + sequence`."""

Feed = Mapping[str, NDArray[Any]]
"""The inputs of one forward pass, by name."""

BATCH_TOKENS = 4096
BATCH_ROWS = 64
MASK = "attention_mask"
NOISE = "noise"
"""The name of random numbers that a model draws itself where it is not given any."""
NOT_RUN = "it does not run on random inputs: "
"""How the reason begins why a model that can be built has no signature."""

TRIED = 8
"""Tokens of a sample that a model is tried on."""
FLAGS = 2
"""What an input of flags may hold, and one of indices of which nothing is known."""
HALF = {"float16", "bfloat16"}

Pooling = Literal["mean", "cls", "lasttoken", "max"]
"""How the vectors of tokens become one, in the words of sentence-transformers."""


def batch_size(feed: Feed) -> int:
    """How many samples a batch has."""
    return len(next(iter(feed.values())))


def rows_at_once(feed: Feed) -> int:
    """How many samples a batch has at most: of token ids no more than so many tokens, as of text.

    Args:
        feed: samples of one shape.

    Example:
        >>> rows_at_once({"ids": np.zeros((900, 256), np.int64)}), rows_at_once({"x": np.zeros((20, 3, 9, 9))})
        (16, 64)
    """
    first = next(iter(feed.values()))
    return rows_of(first.shape[1] if first.ndim == 2 and np.issubdtype(first.dtype, np.integer) else 1)


def rows_of(tokens: int) -> int:
    """How many samples of so many tokens a batch has at most."""
    return max(1, min(BATCH_ROWS, BATCH_TOKENS // max(tokens, 1)))


def elements(feed: Feed) -> int:
    """How many numbers the first input of a batch has: tokens, of those that are read as text."""
    return next(iter(feed.values())).size


def in_batches_of(size: int, feed: Feed) -> Iterator[tuple[Feed, int]]:
    """A batch in parts of so many samples, and how many of them are its own: the last one is filled up with others.

    Example:
        >>> feed = {"x": np.array([1, 2, 3])}
        >>> [(part["x"].tolist(), own) for part, own in in_batches_of(2, feed)]
        [([1, 2], 2), ([3, 1], 1)]
    """
    rows = batch_size(feed)
    for start in range(0, rows, size):
        chosen = np.arange(start, start + size) % rows
        yield {name: array[chosen] for name, array in feed.items()}, min(size, rows - start)


def as_taken(feeds: Sequence[Feed], size: int | None) -> Sequence[Feed]:
    """Batches of as many samples as a model takes at once, those that it is given if that is not fixed."""
    return feeds if size is None else [part for feed in feeds for part, _ in in_batches_of(size, feed)]


@dataclass(frozen=True, slots=True)
class Input:
    """One input: its name, type and axes. Integers are drawn from 0 to `high - 1`."""

    name: str
    dtype: str
    dims: tuple[Dim, ...]
    high: int = 1
    scale: int = 1
    """How many numbers of this input make one step of `sequence`: samples of a sound wave, for one."""
    offset: int = 0
    """How many numbers come before the first step of `sequence`."""
    last: int | None = None
    """The token that every sample ends with, and that is nowhere else in it, where the model looks for one."""

    @property
    def is_floating(self) -> bool:
        """Whether it holds numbers rather than indices or flags."""
        return self.dtype.startswith(("float", "bfloat"))

    @property
    def array_dtype(self) -> str:
        """The type of its array: numpy has no bfloat16, and halves are drawn in float32."""
        return "float32" if self.dtype in HALF else self.dtype

    def shape(self, batch: int, sequence: int) -> tuple[int, ...]:
        """Its shape at a batch and sequence size. Other sizes that may vary are one more than the sequence."""
        sizes = {"batch": batch, "sequence": sequence}
        shape: list[int] = []
        for dim in self.dims:
            if isinstance(dim, int):
                shape.append(dim)
            else:
                size = sum(sizes.get(part.strip(), sequence + 1) for part in dim.split("+"))
                shape.append(size * self.scale + self.offset if dim == "sequence" else size)
        return tuple(shape)


@dataclass(frozen=True, slots=True)
class Signature:
    """All the inputs that a model is fed with, and all the outputs that it gives."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...] = ()
    """In the model's order; empty where the model has not been run yet."""
    positional: int = 0
    """How many of the first inputs are passed by position."""
    max_sequence: int = 512
    fixed_kwargs: tuple[tuple[str, Any], ...] = ()
    pooling: Pooling | None = None
    """How the hidden states that it gives are made into an embedding; None where nothing says that they are."""
    left_out: tuple[str, ...] = ()
    """What the model gives beside its outputs, and no graph has, but for caches."""
    mask_token: int | None = None
    """The token that a masked language model fills in, where it is known to be one."""
    autocast: str | None = None
    """The type of 16 bits that torch computes products in, for a module that is stored in it and makes numbers of
    float32 as well; None for a module that runs in the types that it has."""

    def pooled_by(self, how: Pooling) -> Signature:
        """The same for a model whose hidden states are made into an embedding."""
        return replace(self, pooling=how, outputs=pooled(self.outputs))

    @property
    def output(self) -> str:
        """The name of the output that the model is about."""
        return main_of(self.outputs).name

    @property
    def output_kind(self) -> OutputKind:
        """What the output that the model is about is for."""
        return main_of(self.outputs).kind

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all outputs in order."""
        return tuple(output.name for output in self.outputs)

    @property
    def left_out_notes(self) -> list[str]:
        """A sentence on what the model gives and no graph has, if there is anything."""
        what = f"not in the graph: {', '.join(self.left_out)} (losses, results of parts of the model, or no tensors)"
        return [what] if self.left_out else []

    @property
    def compared(self) -> tuple[Output, ...]:
        """The outputs that results are judged by: all but those that nobody uses."""
        return tuple(output for output in self.outputs if not output.unused) or self.outputs

    def counted(self, feed: Feed, output: Output | None = None) -> NDArray[Any] | None:
        """Which positions of an output count, samples x positions; None if all do.

        Padding does not. Of the scores of a masked language model only the masked tokens do, of an embedding that is
        pooled from one token only that one.

        Args:
            feed: the inputs.
            output: the one that the model is about, if not given.
        """
        output = output or main_of(self.outputs)
        ids = feed.get("input_ids")
        if self.mask_token is not None and ids is not None and output.kind == "logits":
            return ids == self.mask_token
        if output.is_decoded and "decoder_input_ids" in feed:
            # Padding of what the encoder reads is none of what the decoder does.
            mask = feed.get("decoder_attention_mask")
            return None if mask is None else mask != 0
        single = output.is_pooled and self.pooling in ("cls", "lasttoken")
        padding = feed.get(MASK, np.ones_like(ids) if single and ids is not None else None)
        if padding is None or padding.ndim != 2 or not single:
            return None if padding is None else padding != 0
        only = np.zeros(padding.shape, bool)
        at = (padding != 0).argmax(1) if self.pooling == "cls" else _last(padding != 0)
        only[np.arange(len(only)), at] = True
        return only

    @property
    def fixed_batch(self) -> int | None:
        """How many samples every batch has; None where any number will do."""
        return common_size([i.dims[0] for i in self.inputs if i.dims])

    @property
    def fixed_length(self) -> int | None:
        """How many tokens every sample has; None where any number will do."""
        ids = next((i for i in self.inputs if i.name == "input_ids"), None)
        return ids.dims[1] if ids is not None and len(ids.dims) == 2 and isinstance(ids.dims[1], int) else None

    @property
    def names(self) -> tuple[str, ...]:
        """Input names in order."""
        return tuple(i.name for i in self.inputs)

    @property
    def reads_tokens(self) -> bool:
        """Whether it is fed with `input_ids`, and with nothing that text does not give."""
        return "input_ids" in self.names and set(self.names) <= FROM_TEXT

    @property
    def has_sequence(self) -> bool:
        """Whether some input has a sequence axis."""
        return any("sequence" in i.dims for i in self.inputs)

    @property
    def vocabulary(self) -> int:
        """How many different tokens it reads, whatever its own code calls them; 0 where nothing tells."""
        tables = [i for i in self.inputs if len(i.dims) == 2 and not i.is_floating and i.high > FLAGS]
        named = [i for i in tables if i.name == "input_ids"]
        return max((i.high for i in named or tables if i.name not in BESIDE_TOKENS), default=0)

    def shortened(self, feed: Feed) -> Feed | None:
        """The same feed without the last step of the sequence; None if that leaves nothing, or there is none."""
        if not self.has_sequence or any(i.scale != 1 or i.offset for i in self.inputs):
            return None
        cut: dict[str, NDArray[Any]] = {}
        for spec in self.inputs:
            axes = (slice(-1) if dim == "sequence" else slice(None) for dim in spec.dims)
            cut[spec.name] = feed[spec.name][tuple(axes)]
        return cut if all(value.size for value in cut.values()) else None

    def example(self, batch: int, sequence: int, seed: int = 0, padded: bool = False) -> dict[str, NDArray[Any]]:
        """Random inputs of a size; with `padded`, every second row ends in padding."""
        rng = np.random.default_rng(seed)
        values: dict[str, NDArray[Any]] = {}
        for spec in self.inputs:
            shape, dtype = spec.shape(batch, sequence), np.dtype(spec.array_dtype)
            if "mask" in spec.name and not spec.is_floating:
                values[spec.name] = np.ones(shape, dtype)
                if padded and spec.name == MASK:
                    values[spec.name][1::2, ..., max(1, shape[-1] // 2) :] = 0
            elif spec.name == "position_ids" and len(shape) == 2:
                values[spec.name] = np.broadcast_to(np.arange(shape[1], dtype=dtype), shape).copy()
            elif spec.is_floating:
                values[spec.name] = rng.standard_normal(shape).astype(dtype)
            else:
                values[spec.name] = _ending_in(spec.last, rng.integers(0, max(spec.high, 1), shape).astype(dtype))
        return values


def _ending_in(last: int | None, ids: NDArray[Any]) -> NDArray[Any]:
    """Token ids of which each sample ends in one that is nowhere else; as they are where that is None."""
    if last is not None:
        ids[ids == last] = 0 if last else 1
        ids[..., -1] = last
    return ids


def shown_by(
    signature: Signature,
    feed: Feed,
    given: Mapping[str, NDArray[Any]],
    again: Callable[[Feed], Mapping[str, NDArray[Any]]],
    config: Mapping[str, Any],
) -> Signature:
    """The signature with what a run of the model and its config tell of its outputs, beyond their names.

    Args:
        signature: with the names of its outputs.
        feed: what was run.
        given: the outputs of that run by name; whole numbers in their own type.
        again: runs the model on another feed.
        config: see `Run`.
    """

    def shorter() -> Mapping[str, NDArray[Any]]:
        cut = signature.shortened(feed)
        try:
            return {} if cut is None else again(cut)
        except Exception:
            # What takes this length alone has no axis that follows it.
            return {}

    run = Run(feed, given, shorter, signature.vocabulary, config)
    return replace(signature, outputs=tuple(as_shown(output, run) for output in signature.outputs))


def common_size(sizes: Sequence[object]) -> int | None:
    """The size that all have; None if they are none, or not one number."""
    first = sizes[0] if sizes else None
    return first if isinstance(first, int) and all(size == first for size in sizes) else None


def _last(flags: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Where the last one of each row is."""
    return cast("NDArray[np.intp]", flags.shape[1] - 1 - flags[:, ::-1].argmax(1))


BESIDE_TOKENS = frozenset([MASK, "token_type_ids", "position_ids"])
"""Inputs that say something of tokens."""
FROM_TEXT = BESIDE_TOKENS | {"input_ids", "decoder_input_ids"}
"""Inputs that a tokenizer and a text are enough for."""


def of_arrays(arrays: Feed) -> Signature:
    """The signature that sample inputs show: the first axis is the batch, a second one of token ids the sequence."""
    inputs: list[Input] = []
    for name, array in arrays.items():
        floating = array.dtype.kind == "f"
        dims: list[Dim] = ["batch", *array.shape[1:]]
        if not floating and len(dims) == 2:
            dims[1] = "sequence"
        high = 1 if floating or not array.size else int(array.max()) + 1
        inputs.append(Input(name, "float32" if floating else "int64", tuple(dims), high))
    return Signature(tuple(inputs))


def spread(feeds: Sequence[Feed], tokens: int) -> list[Feed]:
    """All batches, or some spread over those that there are, if they hold more tokens than so many.

    Example:
        >>> feeds = [{"ids": np.zeros((2, length))} for length in (3, 4, 5)]
        >>> [feed["ids"].shape[1] for feed in spread(feeds, 12)]
        [3, 5]
    """
    total = sum(map(elements, feeds))
    return list(feeds[:: max(1, -(-total // tokens))])
