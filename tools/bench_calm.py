"""How long commands take on an idle machine and beside other work, and each stage of `compress`.

    python tools/bench_calm.py [--data DATA] [--before CHECKOUT] --output bench

The other work is one loop for each core at nice 15, which the bench starts and stops; a loop ends by itself after some
minutes. The model is all-MiniLM-L6-v2; on an idle machine two models of other kinds with random numbers are compressed,
too. DATA holds stsb_train.tsv, of which the first 2,048 rows calibrate it, and
without it the built-in text does. CHECKOUT is a folder with another version of the project, which is measured in turn
with this one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from measured import Cell, Table, publish
from sentences import minilm_folder
from subjects import first_rows

LOOP = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"
SECONDS = 1800
"""After which a loop ends by itself."""
STEPS = 40
"""Of healing; their number does not depend on the time that they take."""
HERE = Path(__file__).parent.parent
Measured = tuple[dict[str, float], dict[str, float]]
"""Seconds of commands, and of the stages of `compress`."""


@contextmanager
def beside(busy: bool) -> Iterator[None]:
    """Other work on all cores inside the block."""
    cores = len(os.sched_getaffinity(0)) if busy else 0
    command = ["nice", "-n", "15", sys.executable, "-c", LOOP, str(SECONDS)]
    loops = [subprocess.Popen(command) for _ in range(cores)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def seconds_of(checkout: Path, arguments: Sequence[str]) -> float:
    """How long a command of a version takes."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lowrank", *arguments],
        check=True,
        capture_output=True,
        env={**environment, "PYTHONPATH": str(checkout)},
    )
    return time.perf_counter() - start


def commands_in(run: Path, calib: Sequence[str]) -> dict[str, list[str]]:
    """The commands that are timed, in their order."""
    model, folder = str(minilm_folder()), str(run)
    return {
        "lowrank --version": ["--version"],
        "inspect": ["inspect", model],
        "doctor": ["doctor"],
        "compress MODEL --budget 0.3": ["compress", model, "--budget", "0.3", "-o", folder, *calib],
        "select --budget 0.3": ["select", "--budget", "0.3", "-o", folder],
        "evaluate": ["evaluate", "-o", folder],
        "truncate --budget 0.2": ["truncate", folder, "--budget", "0.2", "-o", str(run.with_name("cut"))],
        "export --quantize int8": ["export", folder, "--quantize", "int8", "-o", str(run.with_name("int8"))],
        f"heal --steps {STEPS}": ["heal", folder, "--steps", str(STEPS)],
    }


def other_models(folder: Path) -> dict[str, list[str]]:
    """Commands on models of other kinds, with random numbers: a language model of IgLM's size on as much text as people
    have for it, and a ViT-S on a few images."""
    from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=33, n_positions=256, n_embd=512, n_layer=4, n_head=8))
    vit = ViTForImageClassification(ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536))
    ids, images = rng.integers(0, 33, (336, 256)), rng.standard_normal((8, 3, 224, 224)).astype(np.float32)
    commands: dict[str, list[str]] = {}
    subjects: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("a GPT-2 of 13 M parameters, 86,000 tokens", gpt, {"input_ids": ids, "attention_mask": np.ones_like(ids)}),
        ("a ViT-S, 8 images", vit, {"pixel_values": images}),
    )
    for name, model, arrays in subjects:
        place = folder / f"{type(model).__name__}"
        model.save_pretrained(place)
        np.savez(folder / f"{place.name}.npz", **arrays)
        data = ["--calib", str(folder / f"{place.name}.npz"), "--calib-only"]
        run = str(folder / f"{place.name}-run")
        commands[f"compress {name}"] = ["compress", str(place), "--budget", "0.5", "-o", run, *data]
    return commands


def measured(checkout: Path, busy: bool, calib: Sequence[str]) -> Measured:
    """The seconds of all commands, and of the stages of `compress`."""
    with tempfile.TemporaryDirectory() as work, beside(busy):
        run, stages, times = Path(work) / "run", dict[str, float](), dict[str, float]()
        others = {} if busy else other_models(Path(work))
        for name, arguments in (commands_in(run, calib) | others).items():
            times[name] = seconds_of(checkout, arguments)
            print(f"{checkout.name}, {'busy' if busy else 'idle'}: {name}: {times[name]:.1f} s", flush=True)
            if not stages and (run / "report.json").exists():
                stages = json.loads((run / "report.json").read_text())["seconds"]
        return times, stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with stsb_train.tsv")
    parser.add_argument("--before", type=Path, help="a checkout of another version")
    parser.add_argument("--output", type=Path, default=Path("bench"))
    args = parser.parse_args()
    versions = {"now": HERE} | ({"before": args.before.resolve()} if args.before else {})
    with tempfile.TemporaryDirectory() as work:
        calib: list[str] = []
        if args.data:
            head = first_rows(args.data / "stsb_train.tsv", Path(work) / "first.tsv")
            calib = ["--calib", str(head), "--column", "sentence1,sentence2", "--samples", "4096"]
        found: dict[tuple[str, bool], Measured] = {}
        texts: list[str] = []
        for busy in (False, True):
            for label, folder in versions.items():
                found[label, busy] = measured(folder, busy, calib)
                texts = written(found, list(versions), args.output)
    print("\n".join(texts))


def written(found: dict[tuple[str, bool], Measured], versions: Sequence[str], output: Path) -> list[str]:
    """The tables of what was measured so far: of commands, and of stages."""
    columns = (
        {"": ""}
        | {f"{label}, {kind}": ".1f s" for label in versions for kind in ("idle", "busy")}
        | {f"busy / idle, {label}": ".2f" for label in versions}
    )
    texts: list[str] = []
    for part, name in enumerate(("calm", "calm-stages")):
        last = found["now", False][part]
        names = list(last) if part == 0 else sorted(last, key=lambda stage: -last[stage])
        rows: list[list[Cell]] = []
        for row in names:
            times = {key: found[key][part].get(row) for key in found}
            each = [times.get((label, busy)) for label in versions for busy in (False, True)]
            ratios = [_ratio(times.get((label, True)), times.get((label, False))) for label in versions]
            rows.append([row, *each, *ratios])
        texts.append(publish(Table(columns, rows), output, name))
    return texts


def _ratio(busy: float | None, idle: float | None) -> float | None:
    return busy / idle if busy is not None and idle else None


if __name__ == "__main__":
    main()
