"""Token ids in configs: which keys name them, and the same configs with other ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

SIZES = frozenset(["vocab_size", "n_words"])
"""Keys of how many rows a table of tokens has."""
ENDINGS = ("_token_id", "_token_ids", "_token_index", "_token_idx")
NAMED = frozenset(["pad_index", "bos_index", "eos_index", "unk_index", "mask_index", "force_words_ids"])
"""Beside keys with these endings, those whose ids must stay."""
BY_NAME = frozenset(["lang_to_id", "task_to_id"])
"""Keys of tables from names to ids that must stay."""
FORCED = "forced_decoder_ids"
"""The key of pairs of a place and the id that must stand there."""
LISTS = frozenset(["suppress_tokens", "begin_suppress_tokens"])
"""Keys of lists of ids that are never written, so that one that is gone needs no entry."""
SEQUENCES = frozenset(["bad_words_ids"])
"""Keys of lists of such words, each of several ids."""
BIASED = "sequence_bias"
"""The key of pairs of such a word and what is added to its score."""


class Renumbering:
    """New ids for old ones, in configs that may be nested."""

    def __init__(self, new_of: Mapping[int, int], size: int, new_size: int) -> None:
        """Of one table.

        Args:
            new_of: from old ids to new ones.
            size: rows of the old table; ids that it does not have are left as they are.
            new_size: rows of the new one.
        """
        self._new_of, self._size, self._new_size = new_of, size, new_size

    def config(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """A config with new ids; parts of it whose tables are of another size are left as they are."""
        if self.is_foreign(content):
            return dict(content)
        return {key: self.entry(str(key), value) for key, value in content.items()}

    def is_foreign(self, content: Mapping[str, Any]) -> bool:
        """Whether a config, or a part of one, tells of another table than this one."""
        return any(isinstance(content.get(key), int) and content[key] != self._size for key in SIZES)

    def entry(self, key: str, value: Any) -> Any:
        """The value of a key with new ids."""
        if key in SIZES:
            return self._new_size if value == self._size else value
        if is_named(key):
            return mapped(value, self._one)
        if key in BY_NAME and isinstance(value, Mapping):
            return {name: mapped(i, self._one) for name, i in cast("Mapping[str, Any]", value).items()}
        if key == FORCED and isinstance(value, list):
            return [[place, mapped(i, self._one)] for place, i in value]
        if key in LISTS and isinstance(value, list):
            return [self._one(i) for i in value if self._is_left(i)]
        if key in SEQUENCES and isinstance(value, list):
            return [mapped(word, self._one) for word in value if all(map(self._is_left, word))]
        if key == BIASED and isinstance(value, list):
            return [[mapped(word, self._one), bias] for word, bias in value if all(map(self._is_left, word))]
        if isinstance(value, Mapping):
            return self.config(cast("Mapping[str, Any]", value))
        return value

    def _is_left(self, i: int) -> bool:
        return i in self._new_of or not 0 <= i < self._size

    def _one(self, i: int) -> int:
        return self._new_of[i] if 0 <= i < self._size else i


def is_named(key: str) -> bool:
    """Whether a key holds an id that must stay, or a list of such.

    Example:
        >>> is_named("decoder_start_token_id"), is_named("hidden_size")
        (True, False)
    """
    return key.endswith(ENDINGS) or key in NAMED


def mapped(value: Any, new: Callable[[int], int]) -> Any:
    """A value with every whole number in it replaced, in lists too."""
    if isinstance(value, list | tuple):
        return [mapped(inner, new) for inner in cast("Iterable[Any]", value)]
    return new(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Named(dict[int, int]):
    """Ids that stay what they are, of which it is noted which were asked for."""

    def __missing__(self, key: int) -> int:
        self[key] = key
        return key


def named_ids(content: Mapping[str, Any], size: int) -> set[int]:
    """The ids that a config names and that must stay, out of those of a table.

    Args:
        content: a parsed config.json or generation_config.json.
        size: rows of the table.

    Example:
        >>> named_ids({"eos_token_id": [3, 5], "text_config": {"pad_token_id": 0}}, 64)
        {0, 3, 5}
    """
    asked = Named()
    Renumbering(asked, size, size).config(content)
    return set(asked)
