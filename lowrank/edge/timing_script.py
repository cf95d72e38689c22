"""Time the operators that a model can be made of, on the machine where it will run.

    python measure.py table.json [dense.onnx]

With the dense model (what `lowrank export MODEL -o dense` writes, in the same type) the table also says what that takes
as a whole, so that budgets can be shares of it, and milliseconds. Needs numpy and onnxruntime. Take the table back, and
compress with `lowrank compress MODEL --latency 0.5 --table table.json`.
"""

# It must run on any Python from 3.8 on.
# pyright: basic
import base64
import json
import platform
import sys
import time
import zlib

import numpy as np
import onnxruntime

WORK = None

TYPES = {"int64": np.int64, "int32": np.int32, "float16": np.float16, "bool": np.bool_}
SECONDS = 0.02
"""For each operator in each of the passes."""
LEAST = 5
PASSES = 2


def session_of(graph, threads):
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def median_of(session, seconds):
    """Microseconds of a run."""
    draw = np.random.default_rng(0)
    feed = {spec.name: draw.standard_normal(spec.shape).astype(np.float32) for spec in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    session.run(names, feed)
    times, start = [], time.perf_counter()
    while len(times) < LEAST or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        session.run(names, feed)
        times.append(time.perf_counter() - before)
    return 1e6 * float(np.median(times))


def measure(work, shown=lambda items: items):
    """A table: microseconds of every operator, the lowest of several medians, since others may use the machine too.

    Args:
        work: `tokens`, `threads`, `dtype`, `step` and `kernels`: a list of operator, two sizes, a graph, and how
            many of the operator are in it; `others` are such works for other types.
        shown: wraps the list of all that is to be done, to show progress.
    """
    best = {}
    rounds = [kernel for _ in range(PASSES) for kernel in work["kernels"]]
    for operator, first, second, packed, copies in shown(rounds):
        graph = zlib.decompress(base64.b64decode(packed))
        time_of = median_of(session_of(graph, work["threads"]), SECONDS) / copies
        key = (operator, first, second)
        best[key] = min(time_of, best.get(key, time_of))
    points = {}
    for (operator, first, second), found in best.items():
        points.setdefault(operator, []).append([first, second, found])
    kept = {name: work[name] for name in ("tokens", "threads", "dtype", "step")}
    others = {"others": [measure(each, shown) for each in work["others"]]} if "others" in work else {}
    return {
        "points": points,
        "machine": platform.machine(),
        "runtime": "onnxruntime " + onnxruntime.__version__,
        "whole": None,
        **kept,
        **others,
    }


def whole_of(path, tokens, threads):
    """Microseconds of a whole model, on one sample of so many tokens."""
    session = session_of(path, threads)
    feed = {}
    for spec in session.get_inputs():
        shape = [
            size if isinstance(size, int) else (1 if axis == 0 else tokens) for axis, size in enumerate(spec.shape)
        ]
        feed[spec.name] = np.ones(shape, TYPES.get(spec.type[7:-1], np.float32))
    times = []
    for _ in range(25):
        before = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - before)
    return 1e6 * float(np.median(times[3:]))


def main():
    """Measure, and write what was found."""
    if len(sys.argv) not in (2, 3) or WORK is None:
        sys.exit("give the file to write, and the dense model: python measure.py table.json [dense.onnx]")

    def shown(items):
        for number, item in enumerate(items):
            if number % 50 == 0:
                print(f"{number} of {len(items)}", file=sys.stderr)
            yield item

    try:
        # Before the minutes, not after them.
        stream = open(sys.argv[1], "w")  # noqa: PTH123, SIM115
    except OSError as error:
        sys.exit(f"measure.py: cannot write {sys.argv[1]}: {error}")
    try:
        table = measure(WORK, shown)
        if len(sys.argv) == 3:
            table["whole"] = whole_of(sys.argv[2], WORK["tokens"], WORK["threads"])
    except Exception as error:
        sys.exit(f"measure.py: onnxruntime {onnxruntime.__version__} cannot run the operators: {str(error)[:200]}")
    with stream:
        json.dump(table, stream)
    print(f"{sys.argv[1]}: {len(WORK['kernels'])} operators")


if __name__ == "__main__":
    main()
