"""The same models in several engines: how long they take there, and how far their outputs are from the exact ones.

    lowrank compress MODEL --budget 0.3 --structures product,neurons --multiple 16 -o RUN
    python tools/bench_engines.py [--run RUN ...] --output bench

all-MiniLM-L6-v2 as it is, and as each run has it, in float32 and in few bits, with scales of each run (portable) and
with fixed ones (qdq). Milliseconds are medians of one thread at 1 x 128, all files and both engines in turn. "off" is
the distance of all outputs on 32 built-in texts to those of the exact graph in ONNX Runtime, as a share of these: in
few bits no two engines agree to the last code, so that what counts is how far each is from the exact model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from measured import Cell, Table, publish
from sentences import encoded, minilm_folder

import lowrank
from lowrank.backends.inputs import Feed
from lowrank.backends.onnx.save import file_size
from lowrank.calibrate.builtin import builtin_text
from lowrank.edge.target import Dtype, Profile, Target
from lowrank.evaluate.graph import open_graph

TARGETS: tuple[tuple[Profile, Dtype], ...] = (
    ("portable", "float32"),
    ("portable", "int8"),
    ("portable", "int4"),
    ("qdq", "int8"),
    ("qdq", "int4"),
)
TEXTS, LENGTH, ROUNDS, WARMUP = 32, 128, 40, 5
Run = Callable[[Feed], Sequence[Any]]


def in_onnxruntime(path: Path) -> Run:
    """A graph in ONNX Runtime, with one thread."""
    session = open_graph(path, 1)
    names = [each.name for each in session.get_inputs()]
    return lambda feed: session.run(None, {name: feed[name] for name in names})


def in_openvino(path: Path) -> Run:
    """A graph in OpenVINO, with one thread."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    model: Any = openvino.Core().compile_model(str(path), "CPU", settings)
    request, names = model.create_infer_request(), {name for port in model.inputs for name in port.names}
    return lambda feed: list(request.infer({name: feed[name] for name in names if name in feed}).values())


ENGINES: Mapping[str, Callable[[Path], Run]] = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def feed_of(ids: Sequence[int]) -> Feed:
    """Token ids as a batch of one."""
    tokens = np.array([ids], np.int64)
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}


def apart(found: Sequence[Sequence[Any]], exact: Sequence[Sequence[Any]]) -> float:
    """How far outputs are from others, as a share of these."""
    pairs = [(a, b) for each, other in zip(found, exact, strict=True) for a, b in zip(each, other, strict=True)]
    return float(np.sqrt(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(b).sum() for _, b in pairs)))


def written(source: str, work: Path) -> dict[tuple[str, str], Path]:
    """The graphs of a model, or of a run's graph, by type and profile."""
    paths: dict[tuple[str, str], Path] = {}
    opening = lowrank.Opening(tokenizer=str(minilm_folder()))
    for profile, dtype in TARGETS:
        folder = work / f"{profile}-{dtype}"
        target, graph = Target(profile=profile, dtype=dtype), Path(source) / "model.onnx"
        if dtype == "float32" and graph.is_file():
            paths[dtype, profile] = graph
        else:
            settings = lowrank.Settings()
            paths[dtype, profile] = lowrank.export(source, folder, target=target, settings=settings, opening=opening)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="*", default=[], help="compressed models beside the dense one")
    parser.add_argument("--output", type=Path, default=Path("bench"))
    args = parser.parse_args()
    feeds = [feed_of(ids) for ids in encoded(builtin_text("technical")[:TEXTS], LENGTH)]
    timed = feed_of(range(1000, 1000 + LENGTH))
    columns = {"model": "", "type": "", "profile": "", "MB": ".1f"}
    columns |= {f"{engine} {what}": form for engine in ENGINES for what, form in (("ms", ".1f"), ("off", ".4f"))}
    with tempfile.TemporaryDirectory() as place:
        files: dict[tuple[str, ...], Path] = {}
        for name, source in {"dense": str(minilm_folder()), **{Path(run).name: run for run in args.run}}.items():
            found = written(source, Path(place) / name)
            files |= {(name, *kind): path for kind, path in found.items()}
        runs = {(*label, engine): open_(path) for label, path in files.items() for engine, open_ in ENGINES.items()}
        outputs = {label: [run(feed) for feed in feeds] for label, run in runs.items()}
        times: dict[tuple[str, ...], list[float]] = {label: [] for label in runs}
        for number in range(WARMUP + ROUNDS):
            for label, run in runs.items():
                start = time.perf_counter()
                run(timed)
                if number >= WARMUP:
                    times[label].append(1e3 * (time.perf_counter() - start))
        rows: list[list[Cell]] = []
        for label, path in files.items():
            exact = outputs[label[0], "float32", "portable", "onnxruntime"]
            cells = [(median(times[*label, e]), apart(outputs[*label, e], exact)) for e in ENGINES]
            rows.append([*label, file_size(path) / 1e6, *(cell for pair in cells for cell in pair)])
        print(publish(Table(columns, rows), args.output, "engines"))


if __name__ == "__main__":
    main()
