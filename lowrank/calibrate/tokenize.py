"""Text to token ids, by the model's own tokenizer."""

from __future__ import annotations

from pathlib import Path

from lowrank.errors import CalibrationError, first_line


def tokenize(source: Path, text: list[str], most: int) -> list[list[int]]:
    """Token ids of every sample that has any, at most `most` each.

    Args:
        source: a tokenizer.json, read by `tokenizers`; or a folder, read by `transformers`.
        text: the samples.
        most: longer ones are cut.

    Raises:
        CalibrationError: if the tokenizer cannot be used, or makes nothing of the text.
    """
    try:
        encoded = _by_file(source, text, most) if source.is_file() else _by_folder(source, text, most)
    except Exception as error:
        raise CalibrationError(
            f"the tokenizer in {source} cannot be used: {first_line(error)}; repair it, or give the model's "
            "inputs as .npz"
        ) from None
    lines = [ids for ids in encoded if ids]
    if not lines:
        raise CalibrationError(f"the tokenizer in {source} makes no tokens of the calibration text; give other text")
    return lines


def _by_file(path: Path, text: list[str], most: int) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(most)
    return [list(encoding.ids) for encoding in tokenizer.encode_batch(text)]


def _by_folder(folder: Path, text: list[str], most: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    from lowrank.backends.torch.huggingface import quiet

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        encoded = tokenizer(text, truncation=True, max_length=most, padding=False)["input_ids"]
    return [list(ids) for ids in encoded]
