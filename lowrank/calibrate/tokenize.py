"""Text to token ids, by the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

from lowrank.artifacts import parse_json
from lowrank.backends.base import Backend, signature_of
from lowrank.backends.beside import beside
from lowrank.errors import CalibrationError, first_line

MASKS = ("[MASK]", "<mask>", "<MASK>")
LONGEST = 512
"""Longer samples are cut, whatever the model's context: their scores and their attention take gigabytes."""


def usual_maximum(dense: Backend) -> int:
    """How many tokens a text of a model usually has at most: what sentence-transformers notes for it, or else its
    context, and in no case more than `LONGEST`."""
    longest = min(signature_of(dense).max_sequence, LONGEST)
    noted = beside(dense, "sentence_bert_config.json").get("max_seq_length")
    return min(noted, longest) if isinstance(noted, int) and noted > 0 else longest


class Encode(Protocol):
    """From texts to token ids."""

    def __call__(self, text: list[str], most: int | None, special: bool) -> list[list[int]]:
        """Token ids of every sample.

        Args:
            text: the samples.
            most: longer ones are cut.
            special: with the tokens that the tokenizer puts before and after a text.
        """
        ...


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a model."""

    source: Path
    encode: Encode
    unknown: int | None = None
    """The id of what stands for a piece that it does not know, if it has one."""
    mask: int | None = None
    """The id of what stands for a piece that a masked language model fills in, if it has one."""
    special: frozenset[int] = frozenset()
    """The ids of what stands for no text."""

    @cached_property
    def frame(self) -> list[int]:
        """What it puts before and after a text, without the text."""
        return self.encode([""], None, True)[0]


def open_tokenizer(source: Path) -> Tokenizer:
    """The tokenizer of a model, which is read once as long as its files stay as they are.

    Args:
        source: a tokenizer.json, read by `tokenizers`; or a folder, read by `transformers`.

    Raises:
        CalibrationError: if it cannot be used, now or later.
    """
    with _tokenizer_errors(source):
        files = [source] if source.is_file() else sorted(source.iterdir())
        return _opened(source, tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=4)
def _opened(source: Path, _: tuple[tuple[str, int, int], ...]) -> Tokenizer:
    """The same; the files with their times and sizes tell whether it is still what it was."""
    tokenizer = (_of_file if source.is_file() else _of_folder)(source)

    def encoded(text: list[str], most: int | None, special: bool) -> list[list[int]]:
        with _tokenizer_errors(source):
            return tokenizer.encode(text, most, special)

    return replace(tokenizer, encode=encoded)


@contextmanager
def _tokenizer_errors(source: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise CalibrationError(
            f"the tokenizer in {source} cannot be used: {first_line(error)}; repair it, or give the model's "
            "inputs as .npz"
        ) from None


def _of_file(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Inner

    inner = Inner.from_file(str(path))
    inner.no_padding()

    def encoded(text: list[str], most: int | None, special: bool) -> list[list[int]]:
        if most is None:
            inner.no_truncation()
        else:
            inner.enable_truncation(most)
        return [list(encoding.ids) for encoding in inner.encode_batch(text, add_special_tokens=special)]

    model = parse_json(path.read_bytes())["model"]
    # Unigram models have its number, all others its text.
    unknown = model.get("unk_id") if "unk_id" in model else inner.token_to_id(model.get("unk_token") or "")
    masks = (inner.token_to_id(name) for name in MASKS)
    special = frozenset(i for i, token in inner.get_added_tokens_decoder().items() if token.special)
    return Tokenizer(path, encoded, unknown, next((mask for mask in masks if mask is not None), None), special)


def _of_folder(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    from lowrank.backends.torch.huggingface import quiet

    with quiet():
        inner = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)

    def encoded(text: list[str], most: int | None, special: bool) -> list[list[int]]:
        options = {"truncation": most is not None, "max_length": most, "add_special_tokens": special}
        with quiet():
            return [list(ids) for ids in inner(text, padding=False, **options)["input_ids"]]

    return Tokenizer(folder, encoded, inner.unk_token_id, inner.mask_token_id, frozenset(inner.all_special_ids))
