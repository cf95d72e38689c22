"""What training in the bits of the file is worth: files of the same bytes, healed for the same minutes in three ways.

    python tools/bench_bits.py --data DATA --minutes 15 --output bench

"healed, then rounded" trains exact numbers and leaves rounding to the file, "healed in its bits" is what `lowrank heal`
does. "dense, healed in its bits" has the model's own matrices in as few bits as the size asks for, where that can be.
"not healed" is what `lowrank compress --size` makes; and once more without types of fewer than four bits. Calibrated
and trained on the head of stsb_train.tsv in DATA, mixed with the built-in text, or with `--built-in` on that alone. The
files themselves are judged, on what `sentences.Judge` reads. What a table in the output has already is not measured
again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))

from measured import Cell, Table, measured_before, publish
from sentences import COLUMNS, Judge, minilm_folder, of_file, of_module
from subjects import minilm_data

import lowrank
from lowrank.backends.onnx.save import file_size
from lowrank.core.selection.knapsack import Knapsack
from lowrank.errors import InfeasibleBudget
from lowrank.healing.training import Training
from lowrank.results.report import ONNX_FILE, Report

SIZES = (8.0, 6.0, 4.0, 3.0)
"""Megabytes."""
Run = tuple[str, Path, int | None]
BEFORE, FOUR = "not healed", "not healed, four bits or more"
AFTER, DURING, DENSE = "healed, then rounded", "healed in its bits", "dense, healed in its bits"


def runs(size: float, settings: lowrank.Settings, minutes: float, work: Path, known: list[str]) -> Iterator[Run]:
    """Each way that is not known, with its file and the steps of its training."""
    budget, source = lowrank.Budget.size(int(1e6 * size)), str(minilm_folder())
    whole = {"settings": settings, "latency": False}
    first = work / f"{size}"
    if not {BEFORE, AFTER, DURING} <= {*known}:
        # What is not healed is refined, as `compress` does it; healing begins with a phase like that.
        lowrank.compress(source, budget, output=first, **whole)
        yield BEFORE, first / ONNX_FILE, None
        lowrank.compress(None, budget, output=first, refine=False, **whole)
    if FOUR not in known:
        few = Knapsack(dtypes=("float32", "float16", "int8", "int4"))
        lowrank.compress(source, budget, output=work / f"{size}-four", selector=few, **whole)
        yield FOUR, work / f"{size}-four" / ONNX_FILE, None
    for way in (AFTER, DURING):
        if way not in known:
            run = work / f"{size}-{way}"
            shutil.copytree(first, run)
            yield way, run / ONNX_FILE, _steps(_healed(run, minutes, exact=way == AFTER))
    if DENSE not in known:
        run = work / f"{size}-dense"
        try:
            lowrank.compress(source, budget, output=run, selector=Knapsack(structures=()), refine=False, **whole)
        except InfeasibleBudget as error:
            print(f"{size} MB, {DENSE}: {error}", file=sys.stderr)
            return
        yield DENSE, run / ONNX_FILE, _steps(_healed(run, minutes))


def _healed(run: Path, minutes: float, exact: bool = False) -> Report:
    training = Training(minutes=minutes)
    if not exact:
        return lowrank.heal(run, training, latency=False)
    with patch("lowrank.pipeline.healing.grids_of_file", return_value=({}, [])):
        return lowrank.heal(run, training, latency=False)


def _steps(report: Report) -> int | None:
    return report.healing[-1].steps


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    options.add_argument("--minutes", type=float, default=15)
    options.add_argument("--built-in", action="store_true", help="without data of one's own")
    options.add_argument("--output", type=Path, default=Path("bench"))
    args = options.parse_args()
    from transformers import AutoModel

    judge = Judge(args.data, of_module(AutoModel.from_pretrained(str(minilm_folder())).eval()))
    title = "bits-built-in" if args.built_in else "bits"
    columns = {"MB": ".1f", "way": "", "minutes": "g", "bytes": ",.0f", "steps": "", **COLUMNS}
    rows: list[list[Cell]] = measured_before(args.output, title, columns)
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as work:
            own, _ = minilm_data(args.data, Path(work))
            settings = replace(lowrank.Settings() if args.built_in else own, targets=("projections", "embeddings"))
            healed = {way: args.minutes for way in (AFTER, DURING, DENSE)}
            minutes = {BEFORE: 0, FOUR: 0, **healed}
            known = [way for way in minutes if any(row[:3] == [size, way, minutes[way]] for row in rows)]
            for way, file, steps in runs(size, settings, args.minutes, Path(work), known):
                if way not in known:
                    rows.append([size, way, minutes[way], file_size(file), steps, *judge(of_file(file))])
                    print(publish(Table(columns, rows), args.output, title).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
