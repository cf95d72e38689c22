"""The pieces of a tokenizer, read from a parsed tokenizer.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

from lowrank.errors import LowRankError, UnsupportedModel, first_line

Kind = Literal["BPE", "WordPiece", "WordLevel", "Unigram"]
KINDS: tuple[Kind, ...] = ("BPE", "WordPiece", "WordLevel", "Unigram")
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
"""What stands for one byte of a character that has no piece."""
PAIRED = {"BertProcessing": ("sep", "cls"), "RobertaProcessing": ("sep", "cls")}
"""Post-processors that name tokens as pairs of a text and an id."""
WITHOUT_IDS = {"ByteLevel"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pieces:
    """The pieces of a tokenizer by id, and how words are put together of them."""

    kind: Kind
    names: Mapping[int, str]
    """Of the model: what its table of pieces holds, with those of the added tokens that are in it."""
    added: Mapping[int, str]
    named: frozenset[int]
    """Ids that the file itself needs: of added tokens, templates, padding, and of what is unknown."""
    unknown: int | None = None
    """The id of what stands for unknown text, if there is one."""
    prefix: str = ""
    """What begins a piece that does not begin a word."""
    suffix: str = ""
    """What ends a piece that ends a word."""
    merges: tuple[tuple[str, str], ...] = ()
    scores: tuple[float, ...] = ()
    is_byte_level: bool = False
    """Whether the characters of pieces stand for bytes."""

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each piece of the model."""
        return {name: i for i, name in self.names.items()}

    @property
    def all_ids(self) -> frozenset[int]:
        """Those of the model and of added tokens."""
        return frozenset(self.names) | frozenset(self.added)

    def words(self) -> dict[int, str]:
        """The pieces of the model that stand for text: no added tokens, and none for single bytes."""
        apart = {*self.added, self.unknown}
        return {i: name for i, name in self.names.items() if i not in apart and not BYTE_PIECE.fullmatch(name)}

    def inner(self, piece: str) -> str:
        """The characters of a piece, without what marks its place in a word.

        Example:
            >>> read_pieces(content).inner("##ing")
            'ing'
        """
        bare = piece.removeprefix(self.prefix).removesuffix(self.suffix)
        return bare or piece

    def spelling(self, piece: str) -> tuple[str, ...]:
        """The pieces of one character each that spell a piece at its place in a word, whether they exist or not.

        Example:
            >>> read_pieces(content).spelling("##ing")
            ('##i', '##n', '##g')
        """
        bare = self.inner(piece)
        whole = bare == piece
        begins = whole or not (self.prefix and piece.startswith(self.prefix))
        ends = not whole and self.suffix and piece.endswith(self.suffix)
        symbols = [("" if begins and i == 0 else self.prefix) + character for i, character in enumerate(bare)]
        return (*symbols[:-1], symbols[-1] + (self.suffix if ends else ""))

    def forms(self, character: str) -> set[int]:
        """The ids of the pieces that are one character, at any place in a word."""
        texts = {p + character + s for p in ("", self.prefix) for s in ("", self.suffix)}
        return {self.ids[text] for text in texts if text in self.ids}

    def merged(self, left: str, right: str) -> str:
        """The piece that a merge of two makes."""
        return left + right[len(self.prefix) :]


def read_pieces(content: Mapping[str, Any]) -> Pieces:
    """The pieces of a parsed tokenizer.json.

    Raises:
        UnsupportedModel: if it is none, if its model is of an unknown type, or if a text whose pieces are gone would
            be an error, for the tokenizer has nothing for what is unknown.
    """
    try:
        return _read(content)
    except LowRankError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UnsupportedModel(
            f"this is no tokenizer.json ({type(error).__name__}: {first_line(error)}); write it anew with "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        ) from None


def _read(content: Mapping[str, Any]) -> Pieces:
    model = content["model"]
    kind = kind_of(model)
    names = _names(model, kind)
    if not names:
        raise UnsupportedModel("the tokenizer has no pieces, so there are none to leave out; keep it as it is")
    added = {int(entry["id"]): str(entry["content"]) for entry in content.get("added_tokens") or ()}
    unknown = _unknown(model, names)
    byte_level = "ByteLevel" in {*_types(content.get("normalizer")), *_types(content.get("pre_tokenizer"))}
    fails = kind != "BPE" or (model.get("unk_token") and not byte_level and not model.get("byte_fallback"))
    if unknown is None and fails:
        raise UnsupportedModel(
            f"the {kind} tokenizer has no piece for what is unknown, so a text whose pieces are left out would be an "
            "error; give its model an unk_token that is in its vocabulary, or keep the vocabulary whole"
        )
    named = {*added, *named_outside(content)} | ({unknown} if unknown is not None else set())
    prefix = model.get("continuing_subword_prefix")
    return Pieces(
        kind=kind,
        names=names,
        added=added,
        named=frozenset(named & (added.keys() | names.keys())),
        unknown=unknown,
        prefix=("##" if prefix is None and kind == "WordPiece" else prefix) or "",
        suffix=model.get("end_of_word_suffix") or "",
        merges=tuple(_pair(merge) for merge in model.get("merges") or ()),
        scores=tuple(float(score) for _, score in model["vocab"]) if kind == "Unigram" else (),
        is_byte_level=byte_level,
    )


def kind_of(model: Mapping[str, Any]) -> Kind:
    """The type of a tokenizer's model; old files do not tell it.

    Raises:
        UnsupportedModel: if it is of a type that is not known here.
    """
    told = model.get("type")
    if told in KINDS:
        return cast("Kind", told)
    if told is not None:
        raise UnsupportedModel(
            f"the tokenizer is of the type {told!r}, and pieces can be left out of {', '.join(KINDS)}; keep the "
            "vocabulary whole"
        )
    if "merges" in model:
        return "BPE"
    if isinstance(model["vocab"], list):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def _names(model: Mapping[str, Any], kind: Kind) -> dict[int, str]:
    if kind == "Unigram":
        return {i: str(name) for i, (name, _) in enumerate(model["vocab"])}
    return {int(i): str(name) for name, i in sorted(model["vocab"].items(), key=lambda entry: entry[1])}


def _unknown(model: Mapping[str, Any], names: Mapping[int, str]) -> int | None:
    """The id of what stands for unknown text, if the table of pieces has one."""
    told = model.get("unk_id")
    if told is not None:
        return int(told)
    text = model.get("unk_token")
    return next((i for i, name in names.items() if text is not None and name == text), None)


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return str(left), str(right)


def _types(value: Any) -> Iterator[str]:
    """The types of a normalizer or pre-tokenizer, and of all parts of it."""
    if isinstance(value, Mapping):
        entry = cast("Mapping[str, Any]", value)
        yield str(entry.get("type"))
        for inner in entry.values():
            yield from _types(inner)
    elif isinstance(value, list):
        for inner in cast("list[Any]", value):
            yield from _types(inner)


def named_outside(content: Mapping[str, Any]) -> set[int]:
    """The ids that the templates and the padding of a tokenizer.json name."""
    found: set[int] = set()

    def seen(i: int) -> int:
        found.add(i)
        return i

    renumber_outside(content, seen)
    return found


def renumber_outside(content: Mapping[str, Any], new: Callable[[int], int]) -> dict[str, Any]:
    """Padding and post-processor of a tokenizer.json with other ids.

    Raises:
        UnsupportedModel: if the post-processor is of an unknown type.
    """
    padding = content.get("padding")
    changed = {"padding": {**padding, "pad_id": new(padding["pad_id"])}} if padding else {}
    processor = content.get("post_processor")
    return changed | ({"post_processor": _processor(processor, new)} if processor else {})


def _processor(value: Mapping[str, Any], new: Callable[[int], int]) -> dict[str, Any]:
    kind = value["type"]
    if kind == "Sequence":
        return {**value, "processors": [_processor(inner, new) for inner in value["processors"]]}
    if kind == "TemplateProcessing":
        tokens = value["special_tokens"]
        changed = {name: {**entry, "ids": [new(i) for i in entry["ids"]]} for name, entry in tokens.items()}
        return {**value, "special_tokens": changed}
    if kind in PAIRED:
        return {**value, **{key: [value[key][0], new(value[key][1])] for key in PAIRED[kind]}}
    if kind in WITHOUT_IDS:
        return dict(value)
    raise UnsupportedModel(
        f"the tokenizer ends with a post-processor of the type {kind!r}, which may name ids that are not known here; "
        "keep the vocabulary whole"
    )
