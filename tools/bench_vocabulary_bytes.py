"""Fewer tokens at the same bytes: what leaves more to the layers against what keeps every token.

    python tools/bench_vocabulary_bytes.py --data DATA --output bench

For each size the model is compressed whole, and after its vocabulary was cut to a share of the rows, as `lowrank
vocabulary --keep` and `lowrank compress --size` do it. Calibrated on the head of stsb_train.tsv in DATA, all of whose
tokens stay; DATA also holds what `sentences.Judge` reads. The files themselves are judged, each with its own tokenizer.
What a table in the output has already is not measured again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from measured import Cell, Table, measured_before, publish
from sentences import COLUMNS, Judge, encoder, minilm_folder, of_file, of_module
from subjects import minilm_data

import lowrank
from lowrank.backends.onnx.save import file_size
from lowrank.results.report import ONNX_FILE

SIZES = (8.0, 5.0)
"""Megabytes."""
SHARES = (1.0, 0.75, 0.5)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--output", type=Path, default=Path("bench"))
    args = options.parse_args()
    from transformers import AutoModel

    source = minilm_folder()
    judge = Judge(args.data, of_module(AutoModel.from_pretrained(str(source)).eval()))
    columns = {"MB": ".1f", "rows": ",.0f", "bytes": ",.0f", **COLUMNS}
    rows: list[list[Cell]] = measured_before(args.output, "vocabulary-bytes", columns)
    with tempfile.TemporaryDirectory() as work:
        settings, _ = minilm_data(args.data, Path(work))
        settings = replace(settings, targets=("projections", "embeddings"))
        texts = [settings.calib] if settings.calib else []
        for size in SIZES:
            for share in SHARES:
                folder, run = source, Path(work) / f"run-{size}-{share}"
                if share < 1:
                    folder = Path(work) / f"cut-{share}"
                    if not folder.exists():
                        lowrank.cut_vocabulary(source, folder, keep=share, texts=texts, column=settings.column)
                kept = AutoModel.from_pretrained(str(folder)).get_input_embeddings().num_embeddings
                if any(row[:2] == [size, kept] for row in rows):
                    continue
                budget = lowrank.Budget.size(int(1e6 * size))
                lowrank.compress(str(folder), budget, output=run, settings=settings, latency=False)
                file = run / ONNX_FILE
                found = judge(of_file(file, encode=encoder(folder)[0]))
                rows.append([size, kept, file_size(file), *found])
                print(publish(Table(columns, rows), args.output, "vocabulary-bytes").splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
