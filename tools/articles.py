"""Retrieval that nothing was chosen on: articles of a dictionary, each to be found by its first sentence.

The dictionary is FOLDOC, of computing (GNU FDL, edited by Denis Howe): Debian's package of it is unpacked to a folder.
"""

from __future__ import annotations

import gzip
import re
from functools import cached_property
from pathlib import Path

import numpy as np
from debian import call
from sentences import Array, Embed

PACKAGE = "dict-foldoc"
LEAST, MOST = 60, 250
"""Words of an article after its first sentence."""
ARTICLES = 500
FOUND = "articles found first, % of dense"


class Articles:
    """Of every first sentence, whether the rest of its own article is the nearest of all."""

    def __init__(self, folder: Path, dense: Embed) -> None:
        """Read the articles, fetched into the folder if they are not there, and embed them with the dense model."""
        pairs = [pair for text in dictionary(folder) if (pair := split(text))]
        step = len(pairs) / ARTICLES
        self._questions, self._articles = zip(*(pairs[int(i * step)] for i in range(ARTICLES)), strict=True)
        self._dense = dense

    @cached_property
    def known(self) -> Array:
        """`first` of the dense model."""
        return self.first(self._dense)

    def __call__(self, embed: Embed) -> float:
        """In per cent of the dense model's share."""
        return 100 * float(self.first(embed).mean() / self.known.mean())

    def first(self, embed: Embed) -> Array:
        """Of each question 1 where its own article is the nearest, 0 where it is not."""
        questions, articles = embed(self._questions), embed(self._articles)
        return np.equal((questions @ articles.T).argmax(1), np.arange(ARTICLES)).astype(np.float64)


def dictionary(folder: Path) -> list[str]:
    """All articles, without their headwords."""
    place = folder / "usr" / "share" / "dictd" / "foldoc.dict.dz"
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        call("apt-get", "download", PACKAGE, cwd=folder)
        call("dpkg-deb", "-x", next(folder.glob(f"{PACKAGE}_*.deb")), folder)
    with gzip.open(place, "rt", encoding="utf-8", errors="replace") as stream:
        # Headwords stand at the margin, articles are indented.
        blocks = re.split(r"\n(?=\S)", stream.read())
    # The built-in text has articles of the Jargon File, which this dictionary took over.
    texts = [" ".join(block.split("\n", 1)[1].split()) for block in blocks if "\n" in block]
    return [text for text in texts if "Jargon File" not in text]


def split(text: str) -> tuple[str, str] | None:
    """The first sentence and the rest of an article that is long enough."""
    plain = re.sub(r"[{}]|<[^>]*>|\(\d{4}-\d\d-\d\d\)", "", text)
    first, _, rest = plain.partition(". ")
    words = rest.split()
    return (first.strip(), " ".join(words[:MOST])) if len(first.split()) > 3 and len(words) >= LEAST else None
