"""Two small trained models: perplexity of a story teller, and how many inputs a sorter still sorts, by keep ratio.

make bench-small STORIES=models/stories260K SORT=models/gpt-nano-sort
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

import sort_gpt
from convert_stories import START, convert, tell
from measured import Cell, Table, publish

import lowrank
from lowrank.backends import open_model
from lowrank.calibrate.data import load_calibration
from lowrank.calibrate.refit import sequential_refit
from lowrank.pipeline.plans import factorize
from lowrank.pipeline.refining import refine
from lowrank.progress import silent

METHODS: dict[str, tuple[bool, Any]] = {
    "plain SVD, uniform ranks": (False, lowrank.Uniform()),
    "lowrank, no data": (False, lowrank.Knapsack()),
    "lowrank, default": (True, lowrank.Knapsack()),
}


def variants(source: Any, calib: Path, keeps: list[float]) -> Any:
    """Method, keep ratio and the factored module of each row."""
    dense: Any = open_model(source)
    data: Any = load_calibration(dense, calib)
    for method, (with_data, selector) in METHODS.items():
        settings = lowrank.Settings(calib=str(calib) if with_data else "none")
        analysis = lowrank.analyze(source, settings=settings)
        for keep in keeps:
            plan = lowrank.select(analysis, keep, selector)
            made = factorize(dense, analysis, plan)
            if with_data:
                made = sequential_refit(data, dense.rewrite(made), made, analysis, silent)
                small: Any = dense.rewrite(made)
                yield "lowrank, no refinement", keep, small.module
                refine(data, small)
                yield method, keep, small.module
            else:
                yield method, keep, dense.rewrite(made).module


def sample(model: Any, count: int, length: int, seed: int) -> torch.Tensor:
    """Stories that the model tells at temperature 1."""
    torch.manual_seed(seed)
    start = torch.full((count, 1), START)
    with torch.no_grad():
        return model.generate(start, max_new_tokens=length, min_new_tokens=length, do_sample=True, top_k=0)


def perplexity(model: Any, ids: torch.Tensor) -> float:
    """Of every token after the first."""
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    return float((-logits.gather(-1, ids[:, 1:, None]).mean()).exp())


def stories(folder: Path, work: Path) -> Table:
    """The first table."""
    model, _ = convert(folder, work / "stories")
    heard, calib = sample(model, 64, 200, 1), sample(model, 256, 127, 2)
    np.savez(work / "stories.npz", input_ids=calib.numpy(), attention_mask=np.ones(calib.shape, np.int64))
    known = tell(model, 150)
    rows: list[list[Cell]] = []

    def row(name: str, share: float, module: Any) -> None:
        told = tell(module, 150)
        same = next((i for i, (a, b) in enumerate(zip(told, known, strict=True)) if a != b), len(known))
        rows.append([name, share, perplexity(module, heard), same])

    row("dense", 1, model)
    for name, share, module in variants(work / "stories", work / "stories.npz", [0.9, 0.8, 0.5, 0.3]):
        row(name, share, module)
    return Table({"": "", "keep": "g", "perplexity": ".2f", "tokens of the story": ".0f"}, rows)


def sorter(folder: Path, work: Path) -> Table:
    """The second table."""
    (source,) = folder.glob("*.json")
    model = sort_gpt.build().eval()
    model.load_state_dict(sort_gpt.read_state(source))
    digits = np.random.default_rng(0).permutation(sort_gpt.inputs())
    np.savez(work / "sort.npz", idx=np.concatenate([digits, np.sort(digits, 1)[:, :-1]], 1))
    rows: list[list[Cell]] = [["dense", 1, sort_gpt.sorted_right(model), len(digits)]]
    for name, share, module in variants(model, work / "sort.npz", [0.8, 0.5]):
        rows.append([name, share, sort_gpt.sorted_right(module), len(digits)])
    return Table({"": "", "keep": "g", "sorted": ".0f", "of": ".0f"}, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=Path, help="folder with a llama2.c checkpoint and its tokenizer")
    parser.add_argument("--sort", type=Path, help="folder with the sorting model's JSON file")
    parser.add_argument("--output", type=Path, default=Path("bench"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        if arguments.stories:
            print(publish(stories(arguments.stories, Path(work)), arguments.output, "small-stories"), end="\n\n")
        if arguments.sort:
            print(publish(sorter(arguments.sort, Path(work)), arguments.output, "small-sort"))


if __name__ == "__main__":
    main()
