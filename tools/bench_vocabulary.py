"""Quality of sentence embeddings with fewer pieces: the most used ones in the built-in text, and all characters.

    python tools/bench_vocabulary.py --data DATA --output bench

DATA holds stsb_train.tsv, stsb_dev.tsv, sst2_dev.tsv, sst2_train.tsv and cisi, a collection in the layout of BEIR.
"unknown" counts tokens for unknown text in the film reviews of sst2_train.tsv and in German sentences; "tokens" is how
many times as many tokens the reviews have. "own data" is the head of stsb_train.tsv, all of whose pieces stay. The
whole folder is written and loaded as a user would, by `rewrite_folder` and `cut_rows`. What a table in the output has
already is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from measured import Cell, Table, measured_before, publish
from respelling import respellings
from sentences import COLUMNS, Judge, encoder, minilm_folder, of_module, read_pairs
from subjects import first_rows

from lowrank.artifacts import parse_json
from lowrank.backends.vocabulary.counts import count_ids, most_used, spared_ids, unread_ids
from lowrank.backends.vocabulary.folder import rewrite_folder
from lowrank.backends.vocabulary.pieces import Pieces, read_pieces
from lowrank.backends.vocabulary.rows import cut_rows
from lowrank.backends.vocabulary.scripts import script_ids, scripts_of
from lowrank.calibrate.builtin import builtin_text
from lowrank.core.distance import Array

SHARES = (0.75, 0.5, 0.35)
GERMAN = (
    "Der Fluß führte im Frühjahr so viel Wasser, daß die Straßen überflutet wurden.",
    "Wir haben gestern über die Vor- und Nachteile größerer Wörterbücher gesprochen.",
    "Österreichische Gemüsehändler verkaufen süße Äpfel, würzigen Käse und frische Brötchen.",
)


def changes(model: Any, pieces: Pieces, among: set[int]) -> Array:
    """By id, one minus the cosine of a piece's embedding to that of what is read in its place; one if that is nothing.

    Each stands alone, between what begins and ends a text.
    """
    found = respellings(pieces, among)
    ends = [pieces.ids[token] for token in ("[CLS]", "[SEP]")]
    embed = of_module(model, lambda texts, _: [[ends[0], *map(int, text.split()), ends[1]] for text in texts])
    alone = embed([str(i) for i in found])
    spelled = embed([" ".join(map(str, parts)) for parts in found.values()])
    result = np.ones(max(pieces.all_ids) + 1)
    result[list(found)] = 1 - (alone * spelled).sum(1)
    return result


def vocabularies(content: dict[str, Any], own: Sequence[str], dense: Any) -> Iterator[tuple[str, set[int]]]:
    """What stays, with a name for it; last with all pieces of some texts of one's own."""
    pieces = read_pieces(content)
    texts = [text for style in ("lines", "prose", "technical") for text in builtin_text(style)]
    counts = count_ids(content, texts)
    unread = unread_ids(content)
    yield "all that texts are read as", set(pieces.all_ids - unread)
    every, few = (script_ids(pieces, s, whole=False) - unread for s in (None, scripts_of(["en"])))
    for share in SHARES:
        rows = round(share * len(pieces.all_ids))
        yield f"most used {100 * share:g} %", most_used(pieces, counts, every, rows, unread)
    half = most_used(pieces, counts, few, len(pieces.all_ids) // 2, unread)
    yield "most used 50 %, characters of en", spared_ids(content, half, texts)
    needed = few | {int(i) for i in np.flatnonzero(count_ids(content, own))}
    for share in SHARES[:2]:
        rows = round(share * len(pieces.all_ids))
        yield f"own data and most used {100 * share:g} %", most_used(pieces, counts, needed, rows, unread)
    # What is used seldom, but spelled badly, is worth a row too; one is added for what the texts happen not to use.
    worth = (counts + 1) * changes(dense, pieces, half) ** 2
    for share in SHARES[:2]:
        rows = round(share * len(pieces.all_ids))
        yield f"own data and worst spelled {100 * share:g} %", most_used(pieces, worth, needed, rows, unread)


def told(folder: Path, reviews: Sequence[str]) -> tuple[int, int, int]:
    """Tokens of the reviews, and of these and of the German sentences the unknown ones."""
    encode, unknown = encoder(folder)
    ids = [[i for line in encode(texts, 512) for i in line] for texts in (reviews, GERMAN)]
    return len(ids[0]), ids[0].count(unknown), ids[1].count(unknown)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--output", type=Path, default=Path("bench"))
    args = options.parse_args()
    from transformers import AutoModel

    source = minilm_folder()
    dense: Any = AutoModel.from_pretrained(str(source)).eval()
    judge = Judge(args.data, of_module(dense))
    lines = (args.data / "sst2_train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    reviews = [line.split("\t")[1] for line in lines]
    whole = told(source, reviews)
    content = parse_json((source / "tokenizer.json").read_bytes())
    columns = {"vocabulary": "", "rows": ",.0f", "parameters": ",.0f", **COLUMNS}
    columns |= {"tokens": ".3f", "unknown": ".0f", "unknown, German": ".0f"}

    def row(name: str, model: Any, encode: Any, counts: tuple[int, int, int]) -> list[Cell]:
        table, size = model.get_input_embeddings().num_embeddings, sum(p.numel() for p in model.parameters())
        return [name, table, size, *judge(of_module(model, encode)), counts[0] / whole[0], *counts[1:]]

    rows = measured_before(args.output, "vocabulary", columns) or [row("all", dense, encoder(source)[0], whole)]
    with tempfile.TemporaryDirectory() as work:
        own, _ = read_pairs(first_rows(args.data / "stsb_train.tsv", Path(work) / "first.tsv"))
    for name, keep in vocabularies(content, own, dense):
        if name in [known[0] for known in rows]:
            continue
        with tempfile.TemporaryDirectory() as work:
            old_ids, notes = rewrite_folder(source, Path(work) / "cut", keep)
            model = copy.deepcopy(dense)
            cut_rows(model, old_ids)
            rows.append(row(name, model, encoder(Path(work) / "cut")[0], told(Path(work) / "cut", reviews)))
        print(*notes, publish(Table(columns, rows), args.output, "vocabulary").splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
