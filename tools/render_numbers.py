"""Renders what was measured into the pages: tables between marks, and numbers in sentences.

    python tools/render_numbers.py                 # rewrite README.md and docs/
    python tools/render_numbers.py --check         # say what would change, and what no file stands behind
    python tools/render_numbers.py --take bench    # first take over what benches have written there
    python tools/render_numbers.py --report lowrank-demo/report.json demo

Measurements are the JSON files in docs/numbers (`measured.py`): tables of benches, and reports of runs. A table stands
between `<!-- numbers: NAME -->` and `<!-- end -->`. Sentences with numbers are listed in docs/numbers/prose.yaml, with
an expression in the place of each number, and so are figures that are not measured but set.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))

from measured import Cell, Table, machine, read, shown

ROOT = Path(__file__).parent.parent
REGION = re.compile(r"(<!-- numbers: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
HOLE = re.compile(r"\{(.+?)(?::([^{}:\]'\"]+))?\}")
NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"
MEASURED = re.compile(r"\d+\.\d+|\b\d[\d,]*(?= (?:%|ms|us|MB|GB|seconds|times)(?!\w))")
"""What looks like a measurement: a decimal number, or one with a unit."""
KEEPS = {"0.02", "0.05", "0.1", "0.2", "0.25", "0.3", "0.5", "0.6", "0.8", "0.9"}
"""Keep ratios, which are asked for wherever they stand."""
SILENT = re.compile(r"<!--.*?-->|^ *```.*?^ *```$|`[^`]*`|\]\([^)]*\)|^#.*?$", re.DOTALL | re.MULTILINE)
"""Comments, code, links and titles."""
UNCHECKED = ("docs/decisions", "docs/theory.md", "docs/numerics.md", "docs/commands.md", "docs/api.md")
"""Decisions are as of their day; bounds of numerics are held by the tests named there; the others measure nothing."""


class Drift(Exception):
    """A page and what was measured do not fit."""


def numbers(folder: Path) -> dict[str, Any]:
    """Every file of measurements by its name, `-` as `_`."""
    return {path.stem.replace("-", "_").replace(".", "_"): read(path) for path in sorted(folder.glob("*.json"))}


def pages(root: Path) -> list[Path]:
    """The pages that numbers stand on."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


# Tables.


def by_keep(table: Table) -> Table:
    """One row for each method: its metrics at every keep ratio; seconds and memory of the smallest.

    What is not compressed is alike at every keep ratio.
    """
    name, _, *rest = table.columns
    last = [column for column in rest if column in ("seconds", "peak MB")]
    metrics = [column for column in rest if column not in last]
    keeps = list(dict.fromkeys(row[1] for row in table.rows if row[1] != 1))
    pairs = [(metric, keep) for metric in metrics for keep in keeps]
    columns = {name: ""} | {f"{metric} at {keep}": table.columns[metric] for metric, keep in pairs}
    rows: list[list[Cell]] = []
    for method in dict.fromkeys(row[0] for row in table.rows):
        found = {row[1]: list(row) for row in table.rows if row[0] == method}
        at = {keep: found.get(1, found.get(keep)) for keep in keeps}
        cells = [row[2 + metrics.index(metric)] if (row := at[keep]) else None for metric, keep in pairs]
        rows.append([method, *cells, *list(found.values())[-1][2 + len(metrics) :]])
    return Table(columns | {column: table.columns[column] for column in last}, rows)


def against_dense(table: Table) -> Table:
    """Milliseconds, and how many times as fast as the first row that is."""
    timed = [i for i, name in enumerate(table.columns) if " x " in name]
    dense = table.rows[0]

    def cell(row: list[Cell], i: int, form: str) -> Cell:
        return shown(row[i], form) + (f" ({float(dense[i]) / float(row[i]):.1f}x)" if i in timed else "")  # pyright: ignore[reportArgumentType]

    rows = [[cell(list(row), i, form) for i, form in enumerate(table.columns.values())] for row in table.rows]
    return Table(dict.fromkeys(table.columns, ""), rows)


def without(table: Table, *names: str) -> Table:
    """Fewer columns."""
    kept = [i for i, name in enumerate(table.columns) if name not in names]
    columns = {name: form for name, form in table.columns.items() if name not in names}
    return Table(columns, [[row[i] for i in kept] for row in table.rows])


def healed(table: Table, data: str) -> Table:
    """Before and after the longest healing on some data."""
    metrics = list(table.columns)[4 : list(table.columns).index("held-out loss of before")]
    columns = {"keep": "g"}
    for metric in metrics:
        columns |= {f"{metric} {when}": table.columns[metric] for when in ("before", "after")}
    model = table.rows[0][0]
    own = [row for row in table.rows if row[1] == data]
    rows: list[list[Cell]] = []
    for keep in dict.fromkeys(row[2] for row in own):
        longest = max(float(str(row[3])) for row in own if row[2] == keep)
        row: list[Cell] = [keep]
        for metric in metrics:
            row += [table[model, data, keep, 0, metric], table[model, data, keep, longest, metric]]
        rows.append(row)
    return Table(columns, rows)


def of_report(report: Mapping[str, Any]) -> Table:
    """What a run's report.json says, before and after."""
    targets, model, time = report["targets"], report["model"], report["latency"]
    rows: list[list[Cell]] = [
        ["parameters of projections, M", targets["params_before"] / 1e6, targets["params_after"] / 1e6],
        ["parameters, M", model["params_before"] / 1e6, model["params_after"] / 1e6],
        ["model.onnx, MB", time["dense_onnx_bytes"] / 1e6, time["compressed_onnx_bytes"] / 1e6],
        ["multiply-adds a token, M", model["macs_before"] / 1e6, model["macs_after"] / 1e6],
        ["milliseconds, 1 x 128", time["dense_ms"], time["compressed_ms"]],
        ["mean cosine to dense", 1.0, report["quality"]["cosine"]],
    ]
    told = [[row[0], *(shown(x, ".3f" if "cosine" in str(row[0]) else ".1f") for x in row[1:])] for row in rows]
    return Table({"": "", "dense": "", f"keep {targets['keep_ratio']:g}": ""}, told)


def rows_named(table: Table, wanted: Mapping[str, Sequence[float]]) -> Table:
    """Some rows, by their names and keep ratios."""
    return Table(table.columns, [row for row in table.rows if row[1] in wanted.get(str(row[0]), ())])


def by_length(table: Table) -> list[str]:
    """The columns of texts cut to so many tokens."""
    return [name for name in table.columns if name.startswith("cosine at ")]


INT8_OR_LOW_RANK = {
    "dense": (1,),
    "dense, int8": (1,),
    "paraphrase-MiniLM-L3-v2, int8": (1,),
    "WordLlama, a table": (1,),
    "lowrank, default": (0.5, 0.3),
}
NOT_SHOWN = ("retrieval nDCG@10", "cosine to dense")
"""What tables by keep ratio have no room for."""
IN_SHORT = {
    "dense": (1,),
    "dense, int8": (1,),
    "paraphrase-MiniLM-L3-v2, int8": (1,),
    "WordLlama, a table": (1,),
    "built-in text (default)": (0.8, 0.5, 0.3),
    "own data alone": (0.5, 0.3),
}
VIEWS: Mapping[str, tuple[str, Callable[[Any], Table]]] = {
    "demo": ("demo", of_report),
    "int8-or-low-rank": ("minilm", lambda t: rows_named(without(t, "seconds", "peak MB"), INT8_OR_LOW_RANK)),
    "minilm": ("minilm", lambda t: without(t, "seconds", "peak MB")),
    "text": ("text", lambda t: without(t, "seconds")),
    "moments": ("moments", lambda t: without(t, "seconds")),
    "real": ("real", lambda t: without(t, "seconds")),
    "text-in-short": ("text", lambda t: rows_named(without(t, "seconds", "tokens", *by_length(t)), IN_SHORT)),
    "healed": ("healing_minilm", lambda t: healed(without(t, "retrieval nDCG@10"), "own data")),
    "healed-without-data": (
        "healing_minilm_built_in",
        lambda t: healed(without(t, "retrieval nDCG@10", "cosine to dense"), "built-in text"),
    ),
    "methods-minilm": ("methods_minilm", lambda t: by_keep(without(t, *NOT_SHOWN))),
    "ingredients-minilm": ("ingredients_minilm", lambda t: by_keep(without(t, *NOT_SHOWN))),
    "methods-stories": ("methods_stories", by_keep),
    "ingredients-stories": ("ingredients_stories", by_keep),
    "methods-gpt": ("methods_gpt", by_keep),
    "methods-vit": ("methods_vit", lambda t: by_keep(without(t, "as dense"))),
    "edge": ("edge", against_dense),
}
"""What a mark names: a file, and how it is shown. A name that is not here is a file as it is."""


def table_of(name: str, known: Mapping[str, Any]) -> Table:
    """What stands behind a mark."""
    file, view = VIEWS.get(name, (name.replace("-", "_"), lambda t: t))
    if file not in known:
        raise Drift(f"numbers: {name} names no table in docs/numbers; there is {', '.join(sorted(known))}")
    return view(known[file])


# Sentences.


def pattern_of(sentence: str) -> tuple[re.Pattern[str], list[tuple[str, str]]]:
    """What finds a sentence on a page, whatever its numbers and its line breaks are; expression and format of each."""
    parts, holes, end = [], [], 0
    for hole in HOLE.finditer(sentence):
        parts += [_literal(sentence[end : hole.start()]), NUMBER]
        holes.append((hole[1], hole[2] or "g"))
        end = hole.end()
    return re.compile("".join([*parts, _literal(sentence[end:])])), holes


def _literal(text: str) -> str:
    return re.sub(r"(?:\\ |\\\n|\s)+", lambda _: r"\s+", re.escape(text))


def told(text: str, sentence: str, known: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
    """The page with the numbers of one sentence as they were measured, and where the sentence is."""
    pattern, holes = pattern_of(sentence)
    found = list(pattern.finditer(text))
    if len(found) != 1:
        raise Drift(f"{len(found)} times on the page instead of once: {sentence!r}; reword it in prose.yaml, too")
    pieces, end = [], found[0].start()
    for i, (expression, form) in enumerate(holes, 1):
        # Expressions are those of this repository's own file.
        value = eval(expression, {"__builtins__": {}, "min": min, "max": max}, dict(known))
        pieces += [text[end : found[0].start(i)], shown(value, form)]
        end = found[0].end(i)
    pieces.append(text[end : found[0].end()])
    new = text[: found[0].start()] + "".join(pieces) + text[found[0].end() :]
    return new, (found[0].start(), found[0].start() + len("".join(pieces)))


def rendered(page: str, text: str, known: Mapping[str, Any], prose: Mapping[str, Any]) -> str:
    """A page as it is to be.

    Raises:
        Drift: if a mark or a sentence of prose.yaml names nothing.
    """
    text = REGION.sub(lambda m: m[1] + table_of(m[2], known).text() + "\n" + m[3], text)
    for sentence in prose.get(page, {}).get("measured", ()):
        text, _ = told(text, sentence, known)
    return text


def unfounded(page: str, text: str, known: Mapping[str, Any], prose: Mapping[str, Any]) -> Iterator[str]:
    """What looks like a measurement on a page, and is neither rendered nor listed as a setting."""
    if page.startswith(UNCHECKED):
        return
    covered = [m.span() for m in REGION.finditer(text)] + [m.span() for m in SILENT.finditer(text)]
    for sentence in prose.get(page, {}).get("measured", ()):
        covered.append(told(text, sentence, known)[1])
    for phrase in prose.get(page, {}).get("set", ()):
        found = [m.span() for m in re.finditer(_literal(phrase), text)]
        if not found:
            yield f"{page}: prose.yaml lists {phrase!r}, which is not there any more"
        covered += found
    for number in MEASURED.finditer(text):
        if number[0] not in KEEPS and not any(start <= number.start() < end for start, end in covered):
            around = " ".join(text[max(0, number.start() - 40) : number.end() + 30].split())
            yield f"{page}: {number[0]} in {around!r}"


def take_report(path: Path, target: Path) -> None:
    """Copy what a report.json says in numbers; of paths only the last part."""
    report = read(path)
    origin = report["provenance"]
    source = Path(origin["source"].get("path", "")).name if isinstance(origin.get("source"), dict) else ""
    kept = {name: report[name] for name in ("schema", "targets", "model", "budget", "parity", "latency", "quality")}
    kept["provenance"] = {
        "command": ["lowrank", *(Path(word).name or word for word in origin["command"][1:])],
        "versions": origin["versions"],
        "source": source,
        "machine": machine(),
        "date": datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat(),
    }
    target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def take(folder: Path, target: Path) -> list[str]:
    """Copy what benches have written over what is tracked; names that no page knows stay where they are."""
    taken = [path for path in sorted(folder.glob("*.json")) if (target / path.name).exists()]
    for path in taken:
        (target / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return [path.name for path in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--take", type=Path, metavar="FOLDER")
    parser.add_argument("--report", nargs=2, metavar=("REPORT.JSON", "NAME"), help="take over what a run measured")
    given = parser.parse_args()
    folder = ROOT / "docs" / "numbers"
    if given.take:
        print("taken over:", ", ".join(take(given.take, folder)) or "nothing")
    if given.report:
        take_report(Path(given.report[0]), folder / f"{given.report[1]}.json")
    known, prose = numbers(folder), yaml.safe_load((folder / "prose.yaml").read_text(encoding="utf-8"))
    problems, changed, tables = [], [], 0
    for path in pages(ROOT):
        page, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        try:
            new = rendered(page, text, known, prose)
            problems += unfounded(page, new, known, prose)
        except Drift as drift:
            problems.append(f"{page}: {drift}")
            continue
        tables += len(REGION.findall(new))
        if new != text:
            changed.append(page)
            if not given.check:
                path.write_text(new, encoding="utf-8")
    sentences = sum(len(entry.get("measured", ())) for entry in prose.values())
    print(f"{len(known)} files of measurements stand behind {tables} tables and {sentences} sentences")
    print("\n".join([*(f"{page} {'drifts' if given.check else 'rewritten'}" for page in changed), *problems]))
    sys.exit(bool(problems or (given.check and changed)))


if __name__ == "__main__":
    main()
