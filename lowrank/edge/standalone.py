"""Run the model beside this file: it needs numpy, onnxruntime and, for text, tokenizers; nothing else.

    python run.py "a sentence" "another one"        what the model says of them
    python run.py --inputs in.npz --outputs out.npz  its inputs by name, all its outputs by name
    python run.py --time 30                          milliseconds of a run, and memory

Written by lowrank into the folder of a result; it is yours to change.
"""

# It must run on any Python from 3.8 on.
# ruff: noqa: B905
# pyright: basic
import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
TYPES = {"int64": np.int64, "int32": np.int32, "float": np.float32, "float16": np.float16, "bool": np.bool_}

ANSWER = ("start_logits", "end_logits")
"""Scores of the places where an answer begins and ends."""
MAIN = ("logits", "prediction_logits", "sentence_embedding", "text_embeds", "last_hidden_state")
"""What is told of a text, if the model gives several outputs: the first of these."""


def fail(reason):
    """End with a sentence."""
    sys.exit(f"run.py: {reason}")


def open_model(path, threads):
    """A session on the CPU."""
    if not path.is_file():
        fail(f"there is no {path}; keep run.py beside the model, or name it with --model")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Old runtimes do not know the operators of --profile ort, nor four-bit ones.
        fail(
            f"onnxruntime {onnxruntime.__version__} cannot load {path.name}: {str(error)[:200]}; a graph for any "
            "runtime from 1.17 on is what `lowrank compress --profile portable` writes"
        )


def dtype_of(spec):
    """The type of an input's array."""
    return TYPES.get(spec.type[7:-1], np.float32)


def encode(session, texts):
    """Token ids of some texts, padded to the longest."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        fail("text needs a tokenizer: pip install tokenizers; or give --inputs in.npz")
    found = [p for p in (HERE / "model" / "tokenizer.json", HERE / "tokenizer.json") if p.is_file()]
    if not found:
        fail("there is no tokenizer.json beside the model; give --inputs in.npz")
    tokenizer = Tokenizer.from_file(str(found[0]))
    tokenizer.no_padding()
    ids = [tokenizer.encode(text).ids for text in texts]
    if not all(ids):
        fail("the tokenizer makes nothing of an empty text; give some words")
    length = max(map(len, ids))
    values = np.zeros((len(ids), length), np.int64)
    mask = np.zeros_like(values)
    for row, each in enumerate(ids):
        values[row, : len(each)], mask[row, : len(each)] = each, 1
    known = {"input_ids": values, "decoder_input_ids": values, "attention_mask": mask}
    known["position_ids"] = np.broadcast_to(np.arange(length), values.shape)
    names = [spec.name for spec in session.get_inputs()]
    return {name: known.get(name, np.zeros_like(values)) for name in names}


def examples(session, batch, sequence):
    """Inputs of a size: ones, so that every index is valid and nothing is masked."""
    feed = {}
    for spec in session.get_inputs():
        sizes = [
            size if isinstance(size, int) else (batch if axis == 0 else sequence)
            for axis, size in enumerate(spec.shape)
        ]
        feed[spec.name] = np.ones(sizes, dtype_of(spec))
    return feed


def run(session, feed):
    """All outputs by name."""
    specs = session.get_inputs()
    missing = [spec.name for spec in specs if spec.name not in feed]
    if missing:
        fail(f"the model also reads {', '.join(missing)}; it reads {', '.join(s.name for s in specs)}")
    typed = {spec.name: np.ascontiguousarray(feed[spec.name], dtype_of(spec)) for spec in specs}
    for spec in specs:
        if len(spec.shape) != typed[spec.name].ndim:
            fail(f"{spec.name} has {typed[spec.name].ndim} axes, and its shape should be {spec.shape}")
    try:
        values = session.run(None, typed)
    except Exception as error:
        fail(f"the model does not run on these inputs: {str(error)[:200]}")
    return {output.name: np.asarray(value) for output, value in zip(session.get_outputs(), values)}


def tell(texts, feed, outputs):
    """One line a text: an answer's place, the likeliest class or token, or the embedding's similarity to the first."""
    if all(name in outputs for name in ANSWER):
        tell_answers(texts, feed, outputs)
        return
    name = next((name for name in MAIN if name in outputs), next(iter(outputs)))
    value = outputs[name]
    if value.ndim not in (2, 3):
        value = value.reshape(len(texts), -1)
    mask = feed.get("attention_mask", np.ones(value.shape[:2], np.int64))
    last = mask.sum(1) - 1
    if name.endswith("logits"):
        scores = value[np.arange(len(value)), last] if value.ndim == 3 else value
        best = scores.argmax(-1)
        for text, index, row in zip(texts, best, scores):
            print(f"{text}: {index} ({row[index]:.3f})")
        return
    if value.ndim == 3:
        value = (value * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
    value = value / np.linalg.norm(value, axis=-1, keepdims=True)
    for text, row in zip(texts, value):
        print(f"{row @ value[0]:.4f}  {text}")


def tell_answers(texts, feed, outputs):
    """One line a text: the first and the last token of the answer, counted from 0."""
    start, end = (np.where(feed["attention_mask"] == 0, -np.inf, outputs[name]) for name in ANSWER)
    for text, first, scores in zip(texts, start.argmax(-1), end):
        print(f"{text}: tokens {first} to {first + scores[first:].argmax()}")


def timed(session, feed, rounds):
    """Median milliseconds of a run."""
    times = []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        run(session, feed)
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[3:]))


def peak():
    """The most memory that this process has had, in MB; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Unlike the number that getrusage gives, this one does not begin with that of the process that started us.
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if found:
            return int(found[0]) / 1024
    try:
        import resource
    except ImportError:
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main():
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*")
    parser.add_argument("--model", type=Path, default=HERE / "model.onnx")
    parser.add_argument("--inputs", type=Path, help=".npz with one array an input")
    parser.add_argument("--outputs", type=Path, help=".npz to write")
    parser.add_argument("--time", type=int, metavar="ROUNDS")
    parser.add_argument("--batch", type=int, default=1, help="for --time")
    parser.add_argument("--sequence", type=int, default=128, help="for --time")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.inputs is not None and not given.inputs.is_file():
        fail(f"there is no {given.inputs}")
    if given.time is not None and given.time < 1:
        fail("give --time at least one round")
    if given.outputs is not None and not given.outputs.resolve().parent.is_dir():
        fail(f"there is no folder for {given.outputs}")
    before = peak()
    session = open_model(given.model, given.threads)
    if given.time is not None:
        feed = examples(session, given.batch, given.sequence)
        result = {"ms": timed(session, feed, given.time), "peak_mb": peak(), "before_mb": before}
        print(json.dumps({**result, "onnxruntime": onnxruntime.__version__, "cores": os.cpu_count()}))
        return
    if given.inputs is not None:
        try:
            with np.load(given.inputs, allow_pickle=False) as archive:
                feed = dict(archive)
        except Exception as error:
            fail(f"{given.inputs} is no .npz of arrays: {str(error)[:200]}")
    elif given.text:
        feed = encode(session, given.text)
    else:
        parser.error("give some text, --inputs or --time")
    outputs = run(session, feed)
    if given.outputs is not None:
        try:
            np.savez(given.outputs, **outputs)  # pyright: ignore[reportArgumentType]
        except OSError as error:
            fail(f"{given.outputs} cannot be written: {error}")
        return
    if given.text:
        tell(given.text, feed, outputs)
        return
    for name, value in outputs.items():
        print(f"{name} {value.shape}, mean {value.mean():.6f}, largest {np.abs(value).max():.6f}")


if __name__ == "__main__":
    main()
