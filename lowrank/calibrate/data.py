"""Calibration data as batches of model inputs in three folds, without any padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.artifacts.files import hash_array, hash_json
from lowrank.backends.base import Backend, signature_of
from lowrank.backends.inputs import MASK, NOISE, NOT_RUN, Feed, Signature, batch_size, of_arrays, rows_at_once
from lowrank.calibrate.arrays import array_files, as_inputs, read_arrays
from lowrank.calibrate.batches import token_batches
from lowrank.calibrate.folds import split_folds
from lowrank.calibrate.masking import fills_in, masked_arrays, masked_lines, with_mask_token
from lowrank.calibrate.samples import BUILT_IN, TextSource, read_text_samples
from lowrank.calibrate.tokenize import open_tokenizer, usual_maximum
from lowrank.errors import CalibrationError, first_line

TRAINING = 1 << 16
"""Samples to learn from at most: more than minutes on a CPU can use."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches that choose directions (`fit`), that judge ranks (`heldout`) and that neither saw (`report`)."""

    fit: tuple[Feed, ...]
    heldout: tuple[Feed, ...]
    report: tuple[Feed, ...]
    backend: Backend
    """The model that the batches feed, with the signature that they fit."""
    provenance: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    """What a user should know of the data."""

    @property
    def own_name(self) -> str:
        """What the report fold is called beside other sets."""
        return {BUILT_IN: BUILT_IN, "self": "its own text"}.get(self.provenance.get("text", ""), "your data")

    @property
    def is_own_alone(self) -> bool:
        """Whether no built-in text, which is of all lengths, is among the data."""
        return self.provenance.get("text") != BUILT_IN and "builtin" not in self.provenance

    @property
    def report_label(self) -> str:
        """What a measurement on the report fold was made on; with few samples they had to serve twice."""
        apart = self.provenance["samples"] > 5
        return "samples that neither ranks nor factors saw" if apart else "the calibration samples themselves"


def load_calibration(
    backend: Backend, path: Path | None, column: str | None = None, samples: int = 4096, mixed: bool = False
) -> Calibration | None:
    """The calibration data for a model; None if there is none that fits it.

    Args:
        backend: the model, with its tokenizer.
        path: text (see `read_samples`), or an `.npz` of the model's inputs, one array an input and samples along the
            first axis, or a folder of those, each with samples of one length; None takes the built-in text, for models
            that come with a tokenizer.
        column: column or key of the text.
        samples: at most this many, spread evenly over the file.
        mixed: add built-in text to a text, so that it is `SHARE` of all tokens.

    Raises:
        CalibrationError: if the file cannot be read or does not fit the model.
    """
    return _load(backend, TextSource(path=path, column=column, samples=samples, mixed=mixed))


def training_batches(
    calibration: Calibration, path: Path | None, column: str | None = None, mixed: bool = False
) -> tuple[Feed, ...]:
    """All samples of some data, but for those that the calibration judges by.

    Args:
        calibration: whose held-out and report samples are left out, wherever in the data they are.
        path: as for `load_calibration`.
        column: as for `load_calibration`.
        mixed: as for `load_calibration`.
    """
    source = TextSource(path=path, column=column, mixed=mixed).to_learn_from(TRAINING)
    whole = _load(calibration.backend, source)
    assert whole is not None
    aside = {row for feed in (*calibration.heldout, *calibration.report) for row in _rows(feed)}
    batches: list[Feed] = []
    for feed in (*whole.fit, *whole.heldout, *whole.report):
        rows = [i for i, row in enumerate(_rows(feed)) if row not in aside]
        if rows:
            batches.append({name: values[rows] for name, values in feed.items()})
    return tuple(batches)


def _load(backend: Backend, source: TextSource) -> Calibration | None:
    backend = with_mask_token(backend)
    path, signature = source.path, backend.signature
    if path is not None and (path.suffix == ".npz" or path.is_dir()):
        return _from_arrays(backend, path, source.samples)
    if isinstance(signature, str):
        if path is None:
            return None
        raise CalibrationError(f"{path}: the model cannot be run on text: {signature}; give its inputs as .npz")
    if not signature.reads_tokens or backend.tokenizer is None:
        if path is None:
            return None
        lacking = (
            "comes without a tokenizer" if signature.reads_tokens else f"reads {', '.join(signature.names)}, not text"
        )
        raise CalibrationError(f"{path}: the model {lacking}; give --tokenizer tokenizer.json, or its inputs as .npz")
    found = read_text_samples(open_tokenizer(backend.tokenizer), usual_maximum(backend), source)
    folds = (token_batches(masked_lines(lines, backend), signature) for lines in found.folds())
    provenance = {"column": source.column, **found.provenance()}
    notes = (*found.notes, *_padding_counts(signature, [*found.own, *found.added]))
    return Calibration(*folds, backend=backend, provenance=provenance, notes=notes)


def _padding_counts(signature: Signature, lines: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """A note where samples are padded to the length that a model takes, and it reads no mask that tells so."""
    length = signature.fixed_length
    if length is None or MASK in signature.names or all(len(ids) >= length for ids in lines):
        return ()
    return (
        f"the model takes {length} tokens and no {MASK}: shorter texts are filled up with token 0, and what it gives "
        f"there counts as well; give inputs of {length} tokens as .npz, or export it with its mask",
    )


def _rows(feed: Feed) -> list[bytes]:
    """The bytes of each sample, by which it is known again."""
    arrays = [np.ascontiguousarray(values) for values in feed.values()]
    return [b"".join(a[i].tobytes() for a in arrays) for i in range(len(arrays[0]))]


def _from_arrays(backend: Backend, path: Path, samples: int) -> Calibration:
    files = array_files(path)
    arrays = [_with_noise(backend, read_arrays(file)) for file in files]
    backend = _fed_with(backend, files[0], arrays[0])
    signature = signature_of(backend)
    parts = [masked_arrays(as_inputs(file, each, signature), backend) for file, each in zip(files, arrays, strict=True)]
    places = [(part, row) for part in parts for row in range(batch_size(part))]
    count = len(places)
    chosen = [places[i * count // samples] for i in range(samples)] if count > samples else places

    def batches(fold: list[int]) -> tuple[Feed, ...]:
        found: list[Feed] = []
        for part in parts:
            rows = [chosen[i][1] for i in fold if chosen[i][0] is part]
            each = rows_at_once(part)
            steps = (rows[i : i + each] for i in range(0, len(rows), each))
            found += [{name: a[step] for name, a in part.items()} for step in steps]
        return tuple(found)

    hashes = [{name: hash_array(a) for name, a in part.items()} for part in parts]
    # Of one file as it always was, so that a run is known again.
    digest = hash_json(hashes[0] if len(hashes) == 1 else hashes)
    provenance = {"arrays": str(path.resolve()), "samples": len(chosen), "hash": digest}
    folds = map(batches, split_folds(len(chosen)))
    return Calibration(*folds, backend=backend, provenance=provenance, notes=_unmasked(backend))


def _with_noise(backend: Backend, arrays: Feed) -> dict[str, NDArray[Any]]:
    """The arrays with random numbers that a model reads beside them, always the same ones."""
    specs = backend.signature.inputs if isinstance(backend.signature, Signature) else ()
    count, rng = len(next(iter(arrays.values()))), np.random.default_rng(0)
    drawn = {i.name: rng.random(i.shape(count, 1)) for i in specs if i.name == NOISE and i.name not in arrays}
    return {**arrays, **drawn}


def _unmasked(backend: Backend) -> tuple[str, ...]:
    """A note where a masked language model is fed with arrays, and nothing tells which token is its mask."""
    if backend.tokenizer is not None or not fills_in(backend):
        return ()
    return (
        "the model scores a vocabulary for every token, as masked language models do, but without its tokenizer its "
        "mask is not known: nothing is masked, and every position counts; give --tokenizer tokenizer.json",
    )


def _fed_with(backend: Backend, path: Path, arrays: Feed) -> Backend:
    """The model with its own signature if the arrays fit it, else with the one that they show, tried on the model."""
    known = backend.signature
    if isinstance(known, Signature) and all(
        i.name in arrays and arrays[i.name].ndim == len(i.dims) for i in known.inputs
    ):
        return backend.fed_with(known)
    shown = of_arrays(arrays)
    if isinstance(known, Signature):
        types = {i.name: i.dtype for i in known.inputs}
        inputs = tuple(replace(i, dtype=types.get(i.name, i.dtype)) for i in shown.inputs)
        shown = replace(known, inputs=inputs, positional=shown.positional)
    first = {i.name: arrays[i.name][:1].astype(i.array_dtype) for i in shown.inputs}
    try:
        fed = backend.fed_with(shown, first)
        if isinstance(fed.signature, str):
            raise ValueError(fed.signature.removeprefix(NOT_RUN))
        fed.outputs(first)
    except Exception as error:
        wanted = f" (it reads {', '.join(known.names)})" if isinstance(known, Signature) else ""
        raise CalibrationError(
            f"{path}: the model does not run on its arrays {', '.join(arrays)}{wanted}: {first_line(error)}"
        ) from None
    return fed
