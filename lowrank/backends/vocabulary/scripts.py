"""Scripts: which characters belong to which, and which languages are written in which."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache

from lowrank.backends.vocabulary.closure import byte_alphabet
from lowrank.backends.vocabulary.pieces import Pieces
from lowrank.errors import VocabularyError

LANGUAGES = {
    "latin": "af az bs ca cs cy da de en es et eu fi fr ga gl ha hr hu id ig is it la lb lt lv ms mt nl no nb nn pl pt "
    "ro rw sk sl so sq sr sv sw tl tn tr uz vi xh yo zu",
    "cyrillic": "be bg kk ky mk mn ru sr tg tt uk",
    "greek": "el",
    "armenian": "hy",
    "georgian": "ka",
    "hebrew": "he yi",
    "arabic": "ar ckb fa pa ps sd ug ur",
    "devanagari": "hi mr ne sa",
    "bengali": "as bn",
    "gurmukhi": "pa",
    "gujarati": "gu",
    "oriya": "or",
    "tamil": "ta",
    "telugu": "te",
    "kannada": "kn",
    "malayalam": "ml",
    "sinhala": "si",
    "thai": "th",
    "lao": "lo",
    "tibetan": "bo dz",
    "myanmar": "my",
    "khmer": "km",
    "ethiopic": "am ti",
    "hangul": "ko",
    "hiragana": "ja",
    "katakana": "ja",
    "cjk": "ja ko yue zh",
}
"""Scripts, as the names of their characters begin, and the codes of languages that are written in them."""
NOT_OF_A_SCRIPT = frozenset(
    [
        *("BLACK-LETTER", "COMBINING", "DOUBLE-STRUCK", "FEMININE", "MASCULINE", "MATHEMATICAL"),
        *("MICRO", "MODIFIER", "SCRIPT"),
    ]
)
"""Words with which the names of letters of no script begin."""
WIDE = ("FULLWIDTH ", "HALFWIDTH ", "SUPERSCRIPT ", "SUBSCRIPT ")


def scripts_of(languages: Iterable[str]) -> frozenset[str]:
    """The scripts that languages are written in.

    A script is all that a character tells. English and German have the same one, so `en` keeps the letters of German
    too, and nothing tells the pieces of the one language from those of the other. Only texts of a language do.

    Args:
        languages: codes such as `en` or `zh`, also with a region, as in `pt-BR`; or names of scripts.

    Raises:
        VocabularyError: if one is not known.

    Example:
        >>> sorted(scripts_of(["en", "ja"]))
        ['cjk', 'hiragana', 'katakana', 'latin']
    """
    found: set[str] = set()
    for language in languages:
        name = language.strip().lower()
        code = name.replace("_", "-").partition("-")[0]
        scripts = {name} & LANGUAGES.keys() or {s for s, codes in LANGUAGES.items() if code in codes.split()}
        if not scripts:
            known = sorted({code for codes in LANGUAGES.values() for code in codes.split()})
            raise VocabularyError(
                f"{language!r} is no language that is known here; give codes out of {', '.join(known)}, or a script: "
                f"{', '.join(LANGUAGES)}; or texts of the language, whose pieces then stay"
            )
        found |= scripts
    return frozenset(found)


@cache
def script_of(character: str) -> str:
    """The script of a letter or a mark; empty for what belongs to none, such as digits, punctuation and symbols.

    Told by the character's Unicode name, whose first word names the script. So it is not exact for a few letters that
    are shared: they then count as of no script.

    Example:
        >>> script_of("ß"), script_of("!")
        ('latin', '')
    """
    name = unicodedata.name(character, "")
    for width in WIDE:
        name = name.removeprefix(width)
    word = name.partition(" ")[0]
    if unicodedata.category(character)[0] not in "LM" or word in NOT_OF_A_SCRIPT:
        return ""
    return word.lower()


def script_ids(pieces: Pieces, scripts: Iterable[str] | None, *, whole: bool) -> set[int]:
    """The ids of pieces that are written in some scripts, or in none, as digits and punctuation are.

    Args:
        pieces: those of a tokenizer.
        scripts: what `scripts_of` gives; None for all that there are.
        whole: all pieces; otherwise only those of one character, of which any text in these scripts can be spelled.
            In a byte-level tokenizer a piece of a part of a character is of no script, and is not given.

    Example:
        script_ids(pieces, scripts_of(["en", "de"]), whole=False)
    """
    chosen = None if scripts is None else {*scripts, ""}
    found: set[int] = set()
    for i, name in pieces.words().items():
        text = _text(pieces, pieces.inner(name))
        fits = chosen is None or all(c != "\ufffd" and script_of(c) in chosen for c in text)
        if fits and (whole or len(text) == 1):
            found.add(i)
    return found


def _text(pieces: Pieces, characters: str) -> str:
    """What characters of a piece stand for."""
    if not pieces.is_byte_level:
        return characters
    values = byte_alphabet()
    if any(character not in values for character in characters):
        return characters
    return bytes(values[character] for character in characters).decode("utf-8", "replace")
