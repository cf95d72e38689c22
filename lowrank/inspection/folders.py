"""Folders: models, runs, adapters."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from lowrank.artifacts.files import RECORD_FILE
from lowrank.artifacts.outside import is_file
from lowrank.backends.config_block import is_block
from lowrank.backends.not_whole import part_in_folder
from lowrank.backends.weight_files import is_foreign, is_weights, weight_files
from lowrank.errors import LowRankError
from lowrank.inspection.description import Description, quoted, tidy
from lowrank.inspection.graphs import look_at_onnx
from lowrank.inspection.records import look_at_json
from lowrank.inspection.tensors import facts_of, header_of

RUN = ("analysis.json", "plan.json", "report.json")
MOST = 50


def look_at_folder(folder: Path) -> Description:
    """Describe a folder by the files in it."""
    if is_file(folder / "analysis.json") or (is_file(folder / "plan.json") and is_file(folder / "report.json")):
        return _run(folder)
    if is_file(folder / RECORD_FILE):
        return _saved(folder)
    if is_file(folder / "adapter_config.json"):
        adapter = look_at_json(folder / "adapter_config.json")
        weights = _tensors(sorted(folder.glob("*.safetensors")))
        return Description("adapter", adapter.what, facts={**adapter.facts, **weights}, next=adapter.next)
    part = part_in_folder(folder, (entry.name for entry in folder.iterdir()))
    if part is not None:
        return Description(part.kind, part.what, facts=_files(folder), next=part.steps)
    if is_file(folder / "config.json") and not is_foreign(folder / "config.json"):
        return _transformers(folder)
    graphs = sorted(path for path in folder.rglob("*.onnx") if path.is_file())[:MOST]
    names = _files(folder)
    if graphs:
        return Description(
            "onnx-folder",
            f"a folder with {len(graphs)} ONNX files",
            facts={"graphs": {str(tidy(str(p.relative_to(folder)))): p.stat().st_size for p in graphs}, **names},
            next=tuple(f"lowrank inspect {quoted(path)}" for path in graphs[:3]),
        )
    weights = sorted(
        p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") and is_file(p)
    )
    if weights:
        return Description(
            "weights-folder",
            "a folder with weights and no config.json of transformers, which would say how they are applied",
            facts=names,
            next=(f"lowrank analyze {quoted(weights[0])}", "--config or --arch says how it is built"),
        )
    return Description(
        "unknown",
        "a folder that is neither a model nor a run",
        facts=names,
        next=("give a Hugging Face folder (config.json and weights), or a run folder",),
    )


def _files(folder: Path) -> dict[str, Any]:
    """The files of a folder, with sizes."""
    entries = sorted(folder.iterdir())
    sizes = {str(tidy(e.name)): e.stat().st_size for e in entries[:MOST] if is_file(e)}
    inside = [str(tidy(e.name)) for e in entries[:MOST] if e.is_dir()]
    return {"files": sizes, **({"folders": inside} if inside else {}), "entries": len(entries)}


def _tensors(shards: list[Path]) -> dict[str, Any]:
    """Figures of all tensors in some safetensors files; those that cannot be read are named."""
    stored, damaged = [], {}
    for path in shards:
        try:
            stored += header_of(path)[0]
        except LowRankError as error:
            damaged[str(tidy(path.name))] = str(error)
    facts = facts_of(stored) if stored else {}
    facts.pop("contents", None)
    return {**facts, **({"damaged": damaged} if damaged else {})}


def _transformers(folder: Path) -> Description:
    config = look_at_json(folder / "config.json")
    used = weight_files(folder)
    shards = [path for path in used if path.suffix == ".safetensors"]
    old = [path for path in used if path not in shards]
    unread = [path.name for path in sorted(folder.iterdir()) if is_weights(path) and path not in used]
    facts: dict[str, Any] = {**config.facts, **_tensors(shards), "weight_files": [path.name for path in used]}
    facts |= {"not_opened": tidy(unread)} if unread else {}
    facts["tokenizer"] = any(is_file(folder / name) for name in ("tokenizer.json", "vocab.txt", "tokenizer.model"))
    facts["sentence_transformers"] = is_file(folder / "modules.json")
    graphs = [p for place in (folder, folder / "onnx") if place.is_dir() for p in sorted(place.glob("*.onnx"))]
    facts |= {"graphs": {str(p.relative_to(folder)): p.stat().st_size for p in graphs[:MOST]}} if graphs else {}
    facts |= _files(folder)
    kind, what = config.facts.get("model_type"), f"{facts.get('params', 0):,} numbers in {len(shards)} files"
    quantised = config.facts.get("quantization_config")
    if not shards:
        what = f"weights in {len(old)} older torch files" if old else "no weights"
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    if isinstance(quantised, dict) and is_block(quantised):
        return Description(
            "compressed-model",
            f"a {kind} model that lowrank has compressed ({what})",
            facts=facts,
            next=(f"lowrank.load({str(folder)!r})",),
        )
    steps = (f"lowrank analyze {quoted(folder)}", f"lowrank compress {quoted(folder)} --budget 0.5")
    if quantised:
        steps = ("compress the model that it was made from, then quantise",)
        what += f", quantised ({method})"
    elif not shards and not old:
        config_path = quoted(folder / "config.json")
        steps = tuple(f"lowrank analyze {quoted(folder / name)} --config {config_path}" for name in unread[:1])
        steps = steps or ("download the whole model",)
    return Description("huggingface", f"a Hugging Face folder: a {kind} model, {what}", facts=facts, next=steps)


def _saved(folder: Path) -> Description:
    record = look_at_json(folder / RECORD_FILE)
    facts = {**_tensors(sorted(folder.glob("*.safetensors"))), **record.facts, **_files(folder)}
    count = len(record.facts["contents"])
    return Description(
        "compressed-model",
        f"a model that lowrank has compressed: {count} weights replaced",
        facts=facts,
        next=record.next,
    )


def _run(folder: Path) -> Description:
    facts: dict[str, Any] = {}
    parts: list[str] = []
    for name in RUN:
        if not is_file(folder / name):
            continue
        try:
            part = look_at_json(folder / name)
        except LowRankError as error:
            facts[name] = {"why": str(error)}
            continue
        parts.append(name.removesuffix(".json"))
        facts[name] = {key: value for key, value in part.facts.items() if key not in ("contents", "schema_version")}
    graphs = sorted(folder.glob("*.onnx"))
    for path in graphs[:MOST]:
        part = look_at_onnx(path)
        facts[str(tidy(path.name))] = {"what": part.what, "bytes": path.stat().st_size}
    if (folder / "model").is_dir() and is_file(folder / "model" / RECORD_FILE):
        facts["model/"] = {"what": look_at_folder(folder / "model").what}
    facts |= _files(folder)
    done = Counter(parts)
    steps = [f"lowrank compress --budget 0.5 -o {quoted(folder)}"]
    if done["report"]:
        steps = [f"lowrank evaluate -o {quoted(folder)}", f"lowrank heal {quoted(folder)}"]
        steps += [f"open {quoted(folder / 'report.html')}"] if is_file(folder / "report.html") else []
    elif done["plan"]:
        steps = [f"lowrank compress --plan {quoted(folder / 'plan.json')} -o {quoted(folder)}"]
    if (folder / ".lowrank-progress").is_dir():
        steps.insert(0, "it was stopped on the way: the same command with --resume goes on")
    state = "finished" if done["report"] else "analysed and planned" if done["plan"] else "analysed"
    return Description("run", f"a run of lowrank, {state}", facts=facts, next=tuple(steps))
