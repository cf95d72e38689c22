"""What to calibrate on: quality of all-MiniLM-L6-v2 by the text that it is calibrated on, and by the length of texts.

    python tools/bench_text.py --data DATA [--smaller] --output bench

Each row is one text, and everything that `lowrank compress` does with it. Own data are the first rows of STS-B's
training split, both sentences of each. Of the built-in text alone (`lowrank.calibrate.builtin`) a row takes some
65,000 tokens; joined lines are 4 to 16 of them, pieces are 12 to 190 words of a document. The last columns are the
mean cosine to the dense model's embeddings of the same 48 abstracts, cut to so many tokens. "tokens" counts what was
read, "seconds" are those of the analysis and of one result each. Debian's package with the articles (`articles.py`)
is fetched. `--smaller` takes paraphrase-MiniLM-L3-v2 in place of all-MiniLM-L6-v2, as the graph in its package.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from articles import FOUND, Articles
from baselines import SMALLER, baselines, packaged
from measured import Cell, Table, measured_before, publish
from sentences import LENGTHS, RETRIEVAL, SIMILARITY, Embed, Judge, Lengths, encoded, minilm_folder, of_file
from subjects import minilm_data

import lowrank
from lowrank.calibrate import samples as calibration_samples
from lowrank.calibrate.builtin import Style, builtin_text

TOKENS = 1 << 16
SHARES = (0.2, 0.5)
"""Of built-in text beside one's own, other than the default."""
COLUMNS = {
    "calibrated on": "",
    "keep": "g",
    SIMILARITY: ".4f",
    RETRIEVAL: ".1f",
    FOUND: ".1f",
    **{f"cosine at {length} tokens": ".3f" for length in LENGTHS},
    "tokens": ",.0f",
    "seconds": ".0f",
}


def enough(texts: Iterable[str], tokens: int = TOKENS) -> list[str]:
    """The first texts, of so many tokens in all."""
    taken: list[str] = []
    for text in texts:
        if tokens <= 0:
            break
        taken.append(text)
        tokens -= len(encoded([text])[0])
    return taken


def joined() -> Iterator[str]:
    """Passages of neighbouring lines."""
    lines, rng = builtin_text("lines")[::-1], random.Random(0)
    while lines:
        count = rng.randint(4, 16)
        yield " ".join(lines[:count])
        del lines[:count]


def pieces(style: Style) -> Iterator[str]:
    """Documents, one piece of each, then another of each."""
    rng = random.Random(0)
    rest = [text.split() for text in builtin_text(style)]
    while rest := [words for words in rest if words]:
        for words in rest:
            count = rng.randint(12, 190)
            yield " ".join(words[:count])
            del words[:count]


@dataclass(frozen=True)
class Text:
    """What a row is calibrated on, and which keep ratios are tried."""

    settings: lowrank.Settings
    keeps: tuple[float, ...] = (0.5,)
    share: float = calibration_samples.SHARE
    """Of built-in text among all tokens, where it is mixed with one's own."""


def texts(data: Path, work: Path) -> Mapping[str, Text]:
    """By the names of the rows."""
    own, _ = minilm_data(data, work)
    every = (0.8, 0.5, 0.3)

    def file(name: str, samples: list[str]) -> Text:
        path = work / f"{name}.txt"
        path.write_text("\n".join(samples) + "\n", encoding="utf-8")
        return Text(lowrank.Settings(calib=str(path), samples=len(samples), mixed=False))

    lines = builtin_text("lines")
    return {
        "own data alone": Text(replace(own, mixed=False), (0.5, 0.3)),
        "built-in text (default)": Text(lowrank.Settings(), every),
        "own data, mixed with built-in text (default)": Text(own, every),
        "lines alone": file("lines", enough(lines)),
        "lines, half of them joined": file("joined", enough(lines, TOKENS // 2) + enough(joined(), TOKENS // 2)),
        "pieces of prose alone": file("prose", enough(pieces("prose"))),
        "pieces of technical documents alone": file("technical", enough(pieces("technical"))),
        "built-in text, a quarter of the samples": Text(lowrank.Settings(samples=1024)),
        **{f"own data, {share:.0%} of the tokens built-in": Text(own, share=share) for share in SHARES},
    }


def tokens_of(run: Path) -> float:
    """Of all samples that a run was calibrated on, own and built-in."""
    facts: Any = json.loads((run / "analysis.json").read_text(encoding="utf-8"))["settings"]["calibration"]
    return facts["tokens"] + facts.get("builtin", {}).get("tokens", 0)


def scores(judge: Judge, articles: Articles, lengths: Lengths, embed: Embed, *, other: bool = False) -> list[Cell]:
    """Similarity, retrieval twice, and the cosines by length."""
    found = judge.by_name(embed, other=other)
    return [found[SIMILARITY], found[RETRIEVAL], articles(embed), *([None] * len(LENGTHS) if other else lengths(embed))]


def smaller(folder: Path) -> Path:
    """The graph of paraphrase-MiniLM-L3-v2 with its last output alone, which is pooled."""
    import onnx

    path = packaged(SMALLER, ".onnx")
    if path is None:
        raise SystemExit("install it with pip install 'lowrank[bench]'")
    model = onnx.load(path)
    del model.graph.output[:-1]
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="some rows, by the beginnings of their names")
    parser.add_argument("--resume", action="store_true", help="rows of the table that is there are not measured again")
    parser.add_argument("--smaller", action="store_true", help="another model")
    parser.add_argument("--output", type=Path, default=Path("bench"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        if args.smaller:
            graph = smaller(work / "dense")
            source, variants, name = str(graph), [], "text-smaller"
        else:
            variants = list(baselines(work / "instead"))
            graph = work / "instead" / "dense" / "model.onnx"
            source, name = str(minilm_folder()), "text"
        opening = lowrank.Opening(tokenizer=str(minilm_folder()))
        dense = of_file(graph)
        measures = Judge(args.data, dense), Articles(args.output / "articles", dense), Lengths(args.data, dense)
        rows = measured_before(args.output, name, COLUMNS) if args.resume else []
        if not rows:
            rows.append(["dense", 1, *scores(*measures, dense), None, None])
            rows += [[v.name, 1, *scores(*measures, v.embed, other=v.other), None, None] for v in variants]
        for number, (label, each) in enumerate(texts(args.data, work).items()):
            if args.only and not label.startswith(tuple(args.only)):
                continue
            keeps = [keep for keep in each.keeps if [label, keep] not in (row[:2] for row in rows)]
            if not keeps:
                continue
            run, start = work / str(number), time.perf_counter()
            calibration_samples.SHARE = each.share
            lowrank.analyze(source, settings=each.settings, opening=opening, output=run)
            analysis = time.perf_counter() - start
            for keep in keeps:
                start = time.perf_counter()
                lowrank.compress(source, keep, output=run, settings=each.settings, opening=opening, latency=False)
                seconds = analysis + time.perf_counter() - start
                found = scores(*measures, of_file(run / "model.onnx"))
                rows.append([label, keep, *found, tokens_of(run), seconds])
                text = publish(Table(COLUMNS, rows), args.output, name)
                print(text.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
