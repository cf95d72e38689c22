"""Record what lowrank does for tiny models, and compare two records: for changes that must not change behaviour.

    python tools/snapshot.py record FILE.json [--only NAME-GLOB]
    python tools/snapshot.py compare A.json B.json

It uses the command line and the names at the top of the package, and nothing below them. What is measured in seconds is
left out of a record, and so are the versions and the processor that a report names; all else has to be the same.
"""

from __future__ import annotations

import os

# Before torch is imported: sums of other orders are other numbers, and wider terminals other tables.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}

import argparse
import fcntl
import hashlib
import io
import json
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))

from snapshot_cases import CASES, MODELS, prepare

PLACE = Path(tempfile.gettempdir()).resolve() / "lowrank-snapshot"
"""Always the same folder, since an analysis' fingerprint depends on where the calibration text lies."""

MORE = {
    "analyze": "-o run",
    "select": "-o run",
    "compress": "-o run --no-timing",
    "heal": "--steps 20 --no-timing",
    "truncate": "-o cut --no-timing",
    "evaluate": "-o run",
    "sweep": "-o run",
}
"""What every use of a command has."""

TIMES = {"seconds", "latency", "ms", "versions", "processor", "minutes", "curve_minutes"}
"""Keys of what a clock or this machine says."""
OF_TIMES = {"sweep.json": {"on_front", "advice"}}
"""Keys of what follows from that, by file."""
UNSTEADY = {"report.html", "report.json", "sweep.svg"}
"""Files whose bytes tell the time."""
TIMED = re.compile(r"\bms\b|faster|than this one|report\.html|report\.json|measured with")
"""What a line says that tells the time, or the size of a file that does."""
VERSION = re.compile(r"\b(lowrank|python|numpy|scipy|torch|transformers|onnx[a-z-]*) \d[\w.+]*")


def is_steady(name: str) -> bool:
    """Whether a file's bytes do not tell the time."""
    return name not in UNSTEADY and not name.startswith(".lowrank-")


def without_times(content: Any, more: set[str]) -> Any:
    """A JSON value without what a clock says."""
    if isinstance(content, dict):
        kept = {key: each for key, each in content.items() if key not in TIMES | more and is_steady(key)}
        return {key: without_times(each, more) for key, each in kept.items()}
    if isinstance(content, list):
        return [without_times(each, more) for each in content if not (isinstance(each, str) and TIMED.search(each))]
    return content


def digest(content: bytes) -> str:
    """A hash of some bytes."""
    return hashlib.sha256(content).hexdigest()


def recorded(path: Path) -> Any:
    """What is kept of a file: a hash, or the content where its parts are of interest."""
    content = path.read_bytes()
    if path.name == "plan.json":
        return {"content": json.loads(content), "hash": digest(content)}
    if path.name in {"report.json", "sweep.json"}:
        return without_times(json.loads(content), OF_TIMES.get(path.name, set()))
    if path.name in UNSTEADY:
        return "is there"
    if path.name == "README.md":
        lines = [line for line in content.decode().splitlines() if not TIMED.search(line)]
        content = VERSION.sub(r"\1 VERSION", "\n".join(lines)).encode()
    return digest(content)


def printed(text: str) -> Any:
    """What is kept of a command's output: JSON without times, or its lines."""
    if text.startswith("{"):
        return without_times(json.loads(text), set())
    # How wide a column is may depend on a time in it.
    return [re.sub("  +", "  ", line.rstrip()) for line in text.splitlines() if not TIMED.search(line)]


def run(command: str, model: str) -> dict[str, Any]:
    """Run a command line in this process."""
    from lowrank.cli import main

    words = shlex.split(command.format(model=model))
    words += shlex.split(MORE.get(words[0], ""))
    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["lowrank", *words]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as ending:
            code = ending.code
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
    found: dict[str, Any] = {"command": " ".join(words), "exit": code}
    # A sweep's tables are of milliseconds.
    if words[0] != "sweep":
        found["printed"] = printed(out.getvalue())
    if code:
        told = (err.getvalue().strip() or out.getvalue().strip()).splitlines()
        found["failed"] = [line.strip(" │") for line in told if re.search("[a-z]", line)][-1:]
    return found


def call(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a function."""
    try:
        with patch.object(sys, "argv", ["python"]):
            return {"command": function.__name__, "exit": 0, "told": function()}
    except Exception as error:
        return {"command": function.__name__, "exit": 1, "failed": [f"{type(error).__name__}: {error}"]}


def seeded() -> None:
    """Begin with the same random numbers."""
    import numpy as np
    import torch

    np.random.seed(0)
    torch.manual_seed(0)


def outcome(steps: list[Any], folder: Path, before: dict[Path, bytes]) -> dict[str, Any]:
    """A case's record: what its steps gave, and the files that are new or changed."""
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    own = [path for path, content in files.items() if before.get(path) != content]
    hidden = [path for path in own if any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return {"steps": steps, "files": {str(p.relative_to(folder)): recorded(p) for p in own if p not in hidden}}


def cases(only: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each case that is asked for, with its record; a model is made and analyzed when a case first needs it."""
    for name, wanted in CASES.items():
        chosen = [case for case in wanted if fnmatch(f"{name}/{case}", only)]
        if not chosen and not fnmatch(f"{name}/analyze", only):
            continue
        home = PLACE / name
        home.mkdir()
        seeded()
        prepare(name, home)
        with chdir(home):
            known = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
            told = run(f"analyze {MODELS[name].options}", MODELS[name].path)
            yield f"{name}/analyze", outcome([told], home, known)
        for case in chosen:
            folder = PLACE / "case"
            shutil.copytree(home, folder)
            before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            seeded()
            with chdir(folder):
                steps = wanted[case]
                source = str(home / MODELS[name].path)
                told = [call(steps)] if callable(steps) else [run(step, source) for step in steps.split(";")]
                yield f"{name}/{case}", outcome(told, folder, before)
            shutil.rmtree(folder)


def record(path: Path, only: str) -> None:
    """Run the cases, and write what came of them."""
    found: dict[str, Any] = {}
    with PLACE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(PLACE, ignore_errors=True)
        PLACE.mkdir()
        begun = last = time.perf_counter()
        for name, content in cases(only):
            found[name], now = content, time.perf_counter()
            failed = [step["failed"] for step in content["steps"] if "failed" in step]
            print(f"{name}: {now - last:.1f} s", *failed, file=sys.stderr, flush=True)
            last = now
        shutil.rmtree(PLACE)
    path.write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
    print(f"{len(found)} cases in {last - begun:.0f} s", file=sys.stderr)


def leaves(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is no list or mapping, with the keys that lead to it."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else None
    if not pairs:
        yield path, content
        return
    for key, each in pairs:
        yield from leaves(each, (*path, str(key)))


def compare(first: Path, second: Path) -> int:
    """Print each difference between two records; 1 if there is any."""
    one, other = (dict(leaves(json.loads(path.read_text(encoding="utf-8")))) for path in (first, second))
    different = [key for key in {**one, **other} if key not in one or key not in other or one[key] != other[key]]
    for key in different:
        values = (repr(side[key]) if key in side else "absent" for side in (one, other))
        print(f"{key[0]}: {' > '.join(key[1:])}: {' != '.join(values)}")
    return int(bool(different))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--only", default="*", metavar="NAME-GLOB")
    comparing = verbs.add_parser("compare")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    given = parser.parse_args()
    if given.verb == "compare":
        sys.exit(compare(given.first, given.second))
    record(given.file.resolve(), given.only)


if __name__ == "__main__":
    main()
