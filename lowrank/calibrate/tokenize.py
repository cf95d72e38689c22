"""Text to token ids, by the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from lowrank.errors import CalibrationError, first_line


def tokenize(source: Path, text: list[str], most: int) -> list[list[int]]:
    """Token ids of every sample that has any, at most `most` each.

    Raises:
        CalibrationError: if the tokenizer cannot be used, or makes nothing of the text.
    """
    lines = [ids for ids in open_tokenizer(source)(text, most, True) if ids]
    if not lines:
        raise CalibrationError(f"the tokenizer in {source} makes no tokens of the calibration text; give other text")
    return lines


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


def open_tokenizer(source: Path) -> Encode:
    """The tokenizer of a model.

    Args:
        source: a tokenizer.json, read by `tokenizers`; or a folder, read by `transformers`.

    Raises:
        CalibrationError: if it cannot be used, now or later.
    """
    with _tokenizer_errors(source):
        inner = (_of_file if source.is_file() else _of_folder)(source)

    def encoded(text: list[str], most: int | None, special: bool) -> list[list[int]]:
        with _tokenizer_errors(source):
            return inner(text, most, special)

    return encoded


@contextmanager
def _tokenizer_errors(source: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise CalibrationError(
            f"the tokenizer in {source} cannot be used: {first_line(error)}; repair it, or give the model's "
            "inputs as .npz"
        ) from None


def _of_file(path: Path) -> Encode:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()

    def encoded(text: list[str], most: int | None, special: bool) -> list[list[int]]:
        if most is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(most)
        return [list(encoding.ids) for encoding in tokenizer.encode_batch(text, add_special_tokens=special)]

    return encoded


def _of_folder(folder: Path) -> Encode:
    from transformers import AutoTokenizer

    from lowrank.backends.torch.huggingface import quiet

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)

    def encoded(text: list[str], most: int | None, special: bool) -> list[list[int]]:
        options = {"truncation": most is not None, "max_length": most, "add_special_tokens": special}
        with quiet():
            return [list(ids) for ids in tokenizer(text, padding=False, **options)["input_ids"]]

    return encoded
