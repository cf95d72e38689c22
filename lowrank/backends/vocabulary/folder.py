"""The files of a model's folder that name token ids, written anew for fewer pieces."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from lowrank.artifacts import parse_json, staged
from lowrank.backends.config_block import CONFIG_FILE
from lowrank.backends.vocabulary.closure import closed
from lowrank.backends.vocabulary.counts import tokenizer_of
from lowrank.backends.vocabulary.named_ids import SIZES, Renumbering, is_named, named_ids
from lowrank.backends.vocabulary.pieces import Pieces, named_outside, read_pieces
from lowrank.backends.vocabulary.tokenizer_file import Ids, renumbered
from lowrank.errors import UnsupportedModel, VocabularyError, first_line

TOKENIZER_FILE = "tokenizer.json"
CONFIGS = (CONFIG_FILE, "generation_config.json", "tokenizer_config.json")
"""Files that name ids under keys."""
OLD_FORMS = (".model", ".spm", ".tiktoken", ".codes", ".bpe")
"""Suffixes of files with pieces that tokenizer.json has too, and that are not written anew."""
OLD_FILES = ("dict.txt", "encoder.json", "sentencepiece.vocab")


@dataclass(frozen=True)
class Folder:
    """A model's folder, and what of its vocabulary stays."""

    path: Path
    keep: frozenset[int]
    notes: list[str] = field(default_factory=list[str])

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """Its tokenizer.json."""
        return _read(self.path / TOKENIZER_FILE)

    @cached_property
    def pieces(self) -> Pieces:
        """Those of its tokenizer."""
        try:
            return read_pieces(self.tokenizer)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{self.path / TOKENIZER_FILE}: {error}") from None

    @cached_property
    def configs(self) -> dict[str, dict[str, Any]]:
        """Its files that name ids under keys, with the ids that a model has by its class if its config names none."""
        found = {name: _read(self.path / name) for name in CONFIGS if (self.path / name).is_file()}
        if CONFIG_FILE in found:
            found[CONFIG_FILE] = with_defaults(found[CONFIG_FILE])
        return found

    @cached_property
    def size(self) -> int:
        """Rows of the model's table, which often has more than the tokenizer has pieces."""
        largest = max(self.pieces.all_ids) + 1
        config = self.configs.get(CONFIG_FILE, {})
        parts = [config, *(config.get(key) for key in ("text_config", "encoder", "decoder"))]
        told = [part[key] for part in parts if isinstance(part, Mapping) for key in SIZES if key in part]
        size = int(told[0]) if told else largest
        if size < largest:
            raise VocabularyError(
                f"{self.path}: the tokenizer has the id {largest - 1}, but {CONFIG_FILE} says that the table of the "
                f"model has {size:,} rows; give the tokenizer that belongs to the model"
            )
        return size

    @cached_property
    def old_ids(self) -> Ids:
        """For each new id the old one: the tokenizer's in rising order, then ids that have a row but no piece."""
        named = {i for config in self.configs.values() for i in named_ids(config, self.size)}
        named |= {i for i in named_outside(self.tokenizer) if i < self.size}
        pieces = self.pieces.all_ids
        kept = closed(self.pieces, self.keep | (named & pieces))
        return np.array([*sorted(kept), *sorted(named - pieces)], np.int64)

    @cached_property
    def new_of(self) -> dict[int, int]:
        """From old ids to new ones."""
        return {int(old): new for new, old in enumerate(self.old_ids)}


def rewrite_folder(source: Path, target: Path, keep: Iterable[int]) -> tuple[Ids, list[str]]:
    """Write what belongs to a model, without its weights, for a vocabulary of fewer pieces.

    The tokenizer, configs and lists of pieces agree with each other and with tables that have the rows `old_ids` of the
    old ones, in this order. All else in the folder that is no weight is copied. Either all is written or nothing.

    Args:
        source: a Hugging Face folder with a tokenizer.json.
        target: another folder; made if it is missing.
        keep: ids that must stay. So do those that the files name: of added tokens, of padding, of what begins and ends
            a text, and what `closed` adds.

    Returns:
        For each new id the old one, int64, and sentences about files that were left out.

    Raises:
        UnsupportedModel: if there is no tokenizer.json, or one out of which pieces cannot be left.
        VocabularyError: if an id is none of the tokenizer's, or tokenizer and config do not belong together.
        ArtifactError: if something cannot be written.
    """
    from lowrank.backends.torch.huggingface import belongings

    if source.resolve() == target.resolve():
        raise VocabularyError(f"{target} is the model itself, which stays as it is; give another folder")
    folder = Folder(source, frozenset(int(i) for i in keep))
    changed = renumbered(folder.tokenizer, folder.pieces, folder.new_of)
    _check(folder, changed)
    with staged(target) as stage:
        for entry in belongings(source):
            _write(folder, entry, stage / entry.name, changed)
    return folder.old_ids, folder.notes


def _check(folder: Folder, changed: Mapping[str, Any]) -> None:
    """Check that the tokenizers library gives every piece of the new file the id that it was given here.

    Raises:
        UnsupportedModel: if it does not, as where added tokens have ids between those of the model.
    """
    before, after = (tokenizer_of(content).get_vocab(with_added_tokens=True) for content in (folder.tokenizer, changed))
    wrong = [
        name for name, i in after.items() if before.get(name) not in folder.new_of or folder.new_of[before[name]] != i
    ]
    if wrong:
        raise UnsupportedModel(
            f"{folder.path / TOKENIZER_FILE}: {wrong[0]!r} would be read with another id than its own; write the "
            "tokenizer anew with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )


def _write(folder: Folder, entry: Path, target: Path, changed: Mapping[str, Any]) -> None:
    """One file or folder, changed if it names ids, left out with a note if it cannot be changed."""
    name = entry.name
    if entry.is_dir():
        shutil.copytree(entry, target, ignore=shutil.ignore_patterns(".*"))
    elif name == TOKENIZER_FILE:
        target.write_text(json.dumps(changed, ensure_ascii=False, indent=2), encoding="utf-8")
    elif name in folder.configs:
        _write_json(target, _config(folder, name))
    elif name in LISTS_OF_PIECES:
        LISTS_OF_PIECES[name](folder, entry, target, changed)
    elif name in OLD_FILES or entry.suffix in OLD_FORMS:
        folder.notes.append(f"{name} is left out: it has the old pieces, and {TOKENIZER_FILE} has the new ones")
    else:
        shutil.copyfile(entry, target)


def _config(folder: Folder, name: str) -> dict[str, Any]:
    """A file with ids under keys, with new ones; what a class of models has by itself is told where it would differ."""
    before = folder.configs[name]
    after = Renumbering(folder.new_of, folder.size, len(folder.old_ids)).config(before)
    decoder = after.get("added_tokens_decoder")
    if isinstance(decoder, Mapping):
        after["added_tokens_decoder"] = {
            str(folder.new_of[int(i)]): token for i, token in decoder.items() if int(i) in folder.new_of
        }
    return without_defaults(_read(folder.path / name), before, after)


def _write_vocab_txt(folder: Folder, entry: Path, target: Path, _: Mapping[str, Any]) -> None:
    lines = entry.read_text(encoding="utf-8").splitlines()
    if any(folder.pieces.ids.get(line, folder.pieces.ids.get(line.strip())) != i for i, line in enumerate(lines)):
        return _disagrees(folder, entry)
    target.write_text("".join(f"{lines[i]}\n" for i in folder.old_ids if i < len(lines)), encoding="utf-8")


def _write_vocab_json(folder: Folder, entry: Path, target: Path, _: Mapping[str, Any]) -> None:
    table = _read(entry)
    known = {name: i for i, name in {**folder.pieces.names, **folder.pieces.added}.items()}
    if any(known.get(name) != i for name, i in table.items()):
        return _disagrees(folder, entry)
    kept = {name: folder.new_of[i] for name, i in table.items() if i in folder.new_of}
    _write_json(target, kept)


def _write_merges(folder: Folder, entry: Path, target: Path, changed: Mapping[str, Any]) -> None:
    lines = entry.read_text(encoding="utf-8").split("\n")
    head = [line for line in lines[:1] if line.startswith("#version")]
    told = [line for line in lines[len(head) :] if line]
    if told != [" ".join(pair) for pair in folder.pieces.merges]:
        return _disagrees(folder, entry)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in changed["model"]["merges"]]
    target.write_text("".join(f"{line}\n" for line in [*head, *merges]), encoding="utf-8")


def _disagrees(folder: Folder, entry: Path) -> None:
    folder.notes.append(f"{entry.name} is left out: it does not agree with {TOKENIZER_FILE}, which is what is read")


LISTS_OF_PIECES = {
    "vocab.txt": _write_vocab_txt,
    "vocab.json": _write_vocab_json,
    "added_tokens.json": _write_vocab_json,
    "merges.txt": _write_merges,
}
"""Files with pieces, and what writes each."""


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the ids that its class has where it names none; parts of it are treated alike."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return dict(config)
    try:
        usual: dict[str, Any] = CONFIG_MAPPING[kind]().to_dict()
    except Exception:
        # A class that cannot be made of nothing has nothing of its own.
        usual = {}
    filled = {key: with_defaults(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    told = {key: value for key, value in usual.items() if is_named(key) or key in SIZES}
    return {key: value for key, value in told.items() if isinstance(value, int | list)} | filled


def without_defaults(told: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """A changed config with what it told, and of what its class has by itself only what is no longer the same."""
    result: dict[str, Any] = {}
    for key, value in after.items():
        if key not in told and value == before.get(key):
            continue
        inner = told.get(key)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            result[key] = without_defaults(cast("Mapping[str, Any]", inner), before.get(key) or {}, value)
        else:
            result[key] = value
    return result


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UnsupportedModel: if there is none.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnsupportedModel(
            f"there is no {path}, and only in this form can pieces be left out of a tokenizer; write it with "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        ) from None
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path} cannot be read ({first_line(error)}); copy it again") from None
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path} holds no JSON object; copy it again")
    return content


def _write_json(target: Path, content: Mapping[str, Any]) -> None:
    target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
