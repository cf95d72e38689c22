"""How sure figures of retrieval are: several measures of the same files, with the error of drawing other questions.

    python tools/bench_retrieval.py --data DATA dense=dense/model.onnx "keep 0.5=run/model.onnx" ... --output bench

The first file is the dense one, of all-MiniLM-L6-v2. Of each other one the table has nDCG@10 on the collection cisi,
how much more that is than in the row above, and the share of articles that are found first (`articles.py`), all in
percent of the dense model, with their standard errors over questions (the bootstrap of Efron and Tibshirani 1993, 2,000
times). "kept neighbours" is nDCG@10 of the dense model's own ten nearest abstracts to each abstract: it knows nothing
of what people judged, has a thousand questions more, and so varies least.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from articles import FOUND, Articles
from measured import Cell, Table, publish
from sentences import RETRIEVAL, Array, Collection, of_file

from lowrank.core.ranking import rankings

DRAWN = 2000
COLUMNS = {
    "": "",
    RETRIEVAL: ".1f",
    "error": ".1f",
    "more than above": "+.1f",
    "error of that": ".1f",
    FOUND: ".1f",
    "error of them": ".1f",
    "kept neighbours": ".3f",
}


def share(small: Array, dense: Array) -> tuple[float, float]:
    """The mean of one figure a question in percent of the dense model's, and its standard error."""
    some = np.random.default_rng(0).integers(0, len(dense), (DRAWN, len(dense)))
    return 100 * float(small.mean() / dense.mean()), 100 * float(np.std(small[some].mean(1) / dense[some].mean(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("graphs", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--output", type=Path, default=Path("bench"))
    args = parser.parse_args()
    (_, dense), *others = (graph.split("=", 1) for graph in args.graphs)
    collection, embed = Collection(args.data / "cisi"), of_file(Path(dense))
    articles = Articles(args.output / "articles", embed)
    known = embed(collection.documents)
    judged = above = collection.ndcg(known, embed(collection.questions))
    rows: list[list[Cell]] = []
    for name, path in others:
        small = of_file(Path(path))
        documents = small(collection.documents)
        found = collection.ndcg(documents, small(collection.questions))
        more = share(found - above, judged)
        first = share(articles.first(small), articles.known)
        rows.append([name, *share(found, judged), *more, *first, float(rankings(known, documents).mean())])
        above = found
        print(publish(Table(COLUMNS, rows), args.output, "retrieval").splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
