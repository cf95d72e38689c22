"""The model card of a compressed model: what was measured, where it comes from, how it is loaded.

The card of the original stays below it, as its licence may ask, and what of its header is true of the compressed model
too. What it says of measured results is not.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lowrank.core.share import percent
from lowrank.report.fidelity import columns_of_sets
from lowrank.report.shipped import columns_of_files
from lowrank.results.report import Report

MARK = "<!-- lowrank: below is the card of the original model -->"
HEADER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag", "datasets")
"""What is said of the original and is true of the compressed model."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
"""A folder in the cache of the Hub."""
OWN_TAGS = ("lowrank", "low-rank")
FORMATS = ("onnx", "transformers.js")
LONGEST = 1 << 20
"""Characters of a card that are read."""


@dataclass(frozen=True, slots=True)
class OldCard:
    """What is known of the card that was there."""

    entries: Mapping[str, Any] = field(default_factory=dict)
    """Of its header."""
    tags: tuple[str, ...] = ()
    base: str | None = None
    body: str = ""

    @property
    def title(self) -> str | None:
        """Its first heading."""
        heading = re.search(r"^#[ \t]+(\S.*?)[ \t#]*$", self.body, re.MULTILINE)
        return heading.group(1)[:120] if heading else None


def read_card(text: str) -> OldCard:
    """What a card says of the original model, be it the original's own or one that was written here."""
    import yaml

    text = text[:LONGEST]
    match = HEADER.match(text)
    body = text[match.end() :] if match else text
    try:
        header = yaml.safe_load(match.group(1)) if match else {}
    except (yaml.YAMLError, RecursionError, ValueError):
        header = {}
    header = header if isinstance(header, dict) else {}
    ours = MARK in body
    body = body.split(MARK, 1)[1].partition("\n## ")[2].partition("\n")[2] if ours else body
    entries = {key: header[key] for key in KEPT if _is_plain(header.get(key))}
    base = header.get("base_model")
    base = base[0] if isinstance(base, list) and len(base) == 1 else base
    tags = tuple(tag for tag in _texts(header.get("tags")) if tag not in (*OWN_TAGS, *FORMATS))
    return OldCard(entries, tags, base if isinstance(base, str) and HUB_NAME.fullmatch(base) else None, body.strip())


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and len(_texts(value)) == len(value))


def base_of(original: OldCard, source: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """The Hub's name of the original, or of what that was made from; never a path on somebody's machine.

    Args:
        original: its card.
        source: where it was read from.
        config: its config.json.
    """
    cached = CACHED.search(str(source.get("path")))
    if cached:
        return f"{cached.group(1)}/{cached.group(2)}"
    named = config.get("_name_or_path")
    if original.base is None and isinstance(named, str) and HUB_NAME.fullmatch(named) and not Path(named).exists():
        return named
    return original.base


def card_of(
    report: Report,
    original: OldCard,
    base: str | None,
    name: str,
    kind: str,
    pooled: bool,
    graphs: Sequence[str] = (),
) -> str:
    """The whole text of a README.md.

    Args:
        report: what was measured.
        original: the card that was there.
        base: the Hub's name of the original.
        name: what it is called if nothing else tells.
        kind: the class of transformers that it is loaded as.
        pooled: whether it is in the layout of sentence-transformers.
        graphs: the files under `onnx/`.
    """
    import yaml

    header = {
        **({"base_model": base} if base else {}),
        "library_name": "sentence-transformers" if pooled else "transformers",
        **original.entries,
        "tags": [*OWN_TAGS, *(FORMATS if graphs else ()), *original.tags],
    }
    title = original.title or (base.rpartition("/")[2] if base else name)
    of = f"[{base}](https://huggingface.co/{base})" if base else title
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {title}, low rank",
        f"This is {of} made smaller by low-rank factors, with lowrank {_version(report)}. "
        f"The {_count(report.targets.params_before)} parameters that were targeted are now "
        f"{_count(report.targets.params_after)}, which is {percent(report.targets.keep_ratio)} of them.",
        _sizes(report),
        _quality(report),
        _times(replace(report, take=None) if graphs else report),
        "## Use",
        _use(kind, pooled),
        f"For `optimum` and transformers.js there are, under `onnx/`: {', '.join(graphs)}." if graphs else "",
        "## How it was made",
        _commands(report),
    ]
    if original.body:
        parts += [MARK, "## The original's card", original.body]
    return "\n\n".join(part for part in parts if part) + "\n"


def _version(report: Report) -> str:
    return str((report.provenance.versions or {}).get("lowrank", ""))


def _count(value: Any) -> str:
    return f"{int(value):,}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _sizes(report: Report) -> str:
    names = {"params": "parameters", "bytes": "bytes of its tensors", "macs": "multiply-adds a token"}
    rows = [
        [label, _count(report.model[f"{key}_before"]), _count(report.model[f"{key}_after"])]
        for key, label in names.items()
        if report.model[f"{key}_before"]
    ]
    return _table(["", "original", "this model"], rows)


def _quality(report: Report) -> str:
    figures = dict(report.quality.figures) if report.quality else {}
    samples = figures.pop("samples", None)
    parts: list[str] = []
    heads, lines = columns_of_sets(report.quality)
    if report.quality and lines:
        parts += [report.quality.headline, _table(heads, lines), *report.unfit]
    elif report.quality and figures:
        values = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items())
        where = f", on {samples:.0f} {report.quality.data}" if samples else ""
        parts.append(f"Outputs against those of the original{where}: {values}.")
    if report.tasks:
        head = ["task", "metric", "original", "this model", "samples"]
        rows = [
            [row.task, row.metric, f"{row.dense:.4f}", f"{row.compressed:.4f}", str(row.samples or "")]
            for row in report.tasks
        ]
        parts.append(_table(head, rows))
    if report.refinement is not None and report.refinement.kept:
        fitted = report.refinement
        parts.append(
            f"Each block was fitted to the original block's outputs, without labels: the loss on held-out samples went "
            f"from {fitted.before:.4g} to {fitted.after:.4g}."
        )
    for entry in report.healing:
        if entry.kept:
            parts.append(
                f"Trained after that, without labels, to imitate the original: its loss on held-out samples went from "
                f"{entry.before:.4g} to {entry.after:.4g}."
            )
    return "\n\n".join(parts) or "Its quality was not measured."


def _times(report: Report) -> str:
    times = report.latency
    if not times:
        return ""
    processor = report.provenance.processor
    on = f" of {processor}" if processor else ""
    runtime = (report.provenance.versions or {}).get("onnxruntime", "")
    shape = ", ".join(times.shapes)
    where = f"The files of the run and the original, in ONNX Runtime {runtime}, {times.threads} thread(s){on}, {shape}:"
    return "\n\n".join([where, _table(*columns_of_files(report)), *([report.take] if report.take else [])])


def _use(kind: str, pooled: bool) -> str:
    if pooled:
        call = 'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("FOLDER")\n'
        call += 'vectors = model.encode(["A sentence."])'
    else:
        call = f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("FOLDER")'
    return (
        f"```python\nimport lowrank  # pip install lowrank\n{call}\n```\n\n"
        "`import lowrank` registers the layers with transformers. Without it transformers refuses the model."
    )


def _commands(report: Report) -> str:
    provenance = report.provenance
    lines = [public_command(each) for each in (*(provenance.earlier or ()), provenance.command or ())]
    lines = [line for line in dict.fromkeys(lines) if line and not line.startswith("lowrank evaluate")]
    block = f"```sh\n{chr(10).join(lines)}\n```\n\n" if lines else ""
    versions = ", ".join(f"{name} {number}" for name, number in (provenance.versions or {}).items())
    return f"{block}With {versions}. The original's fingerprint is `{(provenance.source or {}).get('fingerprint')}`."


def public_command(given: Sequence[Any]) -> str:
    """A command without the folders of whoever typed it; empty if it is of another program.

    Example:
        >>> public_command(["/home/me/bin/lowrank", "compress", "/home/me/bert", "--budget", "0.5"])
        'lowrank compress bert --budget 0.5'
    """
    if not given or Path(str(given[0])).name not in ("lowrank", "lowrank.exe", "__main__.py"):
        return ""
    return shlex.join(["lowrank", *(_without_folders(str(each)) for each in given[1:])])


def _without_folders(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    task, colon, place = value.partition(":")
    if colon and not place.startswith("//") and len(task) > 1:
        # sts:FILE
        return f"{option}{equals}{task}:{_without_folders(place)}"
    path = PureWindowsPath(value) if "\\" in value else PurePosixPath(value)
    private = path.is_absolute() or value.startswith("~") or ".." in path.parts or "://" in value
    return f"{option}{equals}{path.name or value}" if private else argument
