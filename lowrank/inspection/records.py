"""JSON files: those of a run, and those that come with models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank.errors import ArtifactError
from lowrank.inspection.description import Description, quoted, read_any_json, tidy

Content = Mapping[str, Any]
OF_CONFIGS = (
    *("model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("vocab_size", "torch_dtype", "dtype", "quantization_config", "tie_word_embeddings"),
)
"""What is shown of a config of transformers."""


def look_at_json(path: Path) -> Description:
    """Describe a JSON file by its schema or by its keys."""
    content = read_any_json(path)
    if not isinstance(content, dict):
        size = f" of {len(content)} entries" if isinstance(content, list) else ""
        return Description("json", f"JSON, a {type(content).__name__}{size}", facts={"value": tidy(content)})
    schema = content.get("schema")
    if isinstance(schema, str) and schema.startswith("lowrank."):
        kind, _, version = schema.removeprefix("lowrank.").partition("/")
        look = OURS.get(kind, _of_ours)
        try:
            description = look(path, content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{path} says that it is a lowrank {kind}, and is not whole ({type(error).__name__}: {error}); "
                "make it again"
            ) from None
        return Description(
            kind if look is not _of_ours else tidy(kind),
            description.what,
            facts={"schema_version": tidy(version), **description.facts},
            next=description.next,
        )
    for keys, look in OTHERS:
        if keys <= set(content):
            return look(path, content)
    return Description("json", "JSON that is of no kind that is known here", facts={"keys": tidy(sorted(content), 40)})


def _entries(content: Content, names: Sequence[str]) -> dict[str, Any]:
    """Some entries of a mapping, as they can be shown; None for those that it lacks."""
    return {name: tidy(content.get(name)) for name in names}


def _analysis(path: Path, content: Content) -> Description:
    weights, source = list(content["weights"]), content["source"]
    metrics = Counter(str(w["metric"]) for w in weights)
    facts = {
        "verdict": tidy(content["verdict"]),
        "model": tidy(source.get("path")),
        "model_kind": tidy(source.get("kind")),
        "fingerprint": tidy(content["fingerprint"]),
        "calibration": tidy(content["settings"].get("calibration")),
        "weights": len(weights),
        "targeted_params": content["targeted_params"],
        "metrics": dict(metrics),
        "skipped": len(content["skipped"]),
        "notes": tidy(content["notes"]),
        "contents": [
            {"name": tidy(w["name"]), "shape": tidy(w["shape"]), "break_even_rank": w["break_even_rank"]}
            for w in weights
        ],
    }
    return Description(
        "analysis",
        f"the analysis of {len(weights)} weights of {facts['model'] or 'a live module'}",
        facts=facts,
        next=tuple(f"lowrank {verb} --budget 0.5 -o {quoted(path.parent)}" for verb in ("compress", "select")),
    )


def _plan(path: Path, content: Content) -> Description:
    groups, budget = list(content["groups"]), content["budget"]
    facts = {
        "budget": tidy(budget),
        "budget_reached": content["budget_reached"],
        "keep_ratio": content["keep_ratio"],
        "worst_relative_error": content["worst_relative_error"],
        "analysis": tidy(content["analysis"]),
        "structures": dict(Counter(str(g["structure"]) for g in groups)),
        "notes": tidy(content.get("notes")),
        "contents": [
            {
                "name": tidy(g["name"]),
                "structure": tidy(g["structure"]),
                "rank": g["rank"],
                "error": g["relative_error"],
            }
            for g in groups
        ],
    }
    asked = f"for {tidy(budget['kind'])} {budget['limit']:g}" if budget else "written by hand"
    asked += f" and {budget['size']:,.0f} bytes" if budget and budget.get("size") else ""
    return Description(
        "plan",
        f"the ranks of {len(groups)} groups of weights, {asked}",
        facts=facts,
        next=(f"lowrank compress --plan {quoted(path)} -o {quoted(path.parent)}",),
    )


def _report(path: Path, content: Content) -> Description:
    named = ("targets", "model", "budget", "error", "onnx", "parity", "latency", "quality")
    facts = {name: fact for name, fact in _entries(content, named).items() if fact is not None}
    facts["error"] = tidy({"relative": content["error"].get("relative")})
    facts |= {name: tidy(content.get(name)) for name in ("notes", "problems") if content.get(name)}
    facts["healed"] = len(content.get("healing") or ())
    facts["command"] = tidy(content["provenance"].get("command"), 60)
    keep = content["targets"]["keep_ratio"]
    return Description(
        "report",
        f"what was measured of a compressed model, keep ratio {keep:.3f}",
        facts=facts,
        next=(f"lowrank evaluate -o {quoted(path.parent)}", f"lowrank heal {quoted(path.parent)}"),
    )


def _model(path: Path, content: Content) -> Description:
    replaced = content["replaced"]
    facts = {
        "built_by": tidy(content["rebuild"]),
        "structures": dict(Counter(str(each["structure"]) for each in replaced.values())),
        "contents": [
            {"name": tidy(name), "structure": tidy(each["structure"]), "rank": tidy(each["rank"])}
            for name, each in replaced.items()
        ],
    }
    return Description(
        "model",
        f"the record of a compressed model: {len(replaced)} weights were replaced",
        facts=facts,
        next=(f"lowrank.load({str(path.parent)!r})",),
    )


def _sweep(path: Path, content: Content) -> Description:
    points, task = list(content["points"]), content["task"]
    names = ("name", "bytes", "ms", "quality", "drop", "on_front")
    facts = {
        "metric": tidy(task.get("metric")),
        "advice": tidy(content["advice"]),
        "left_out": tidy(content.get("left_out")),
        "contents": [_entries(point, names) for point in points],
    }
    return Description("sweep", f"{len(points)} ways to make one model smaller, measured", facts=facts)


def _tune(path: Path, content: Content) -> Description:
    trials = list(content["trials"])
    facts = {"best": tidy(content.get("best")), "trials": len(trials), "last": tidy(trials[-1] if trials else None)}
    return Description("tune", f"a search of {len(trials)} trials", facts=facts)


def _of_ours(path: Path, content: Content) -> Description:
    kind = str(content["schema"]).removeprefix("lowrank.").partition("/")[0]
    facts = {"keys": {str(tidy(key)): _extent(value) for key, value in content.items() if key != "schema"}}
    return Description(kind, f"a lowrank {tidy(kind)}", facts=facts)


def _extent(value: Any) -> Any:
    return f"{len(value)} entries" if isinstance(value, list | dict) else tidy(value)


def _timings(path: Path, content: Content) -> Description:
    points = content.get("points")
    counts = (
        {str(tidy(k)): len(v) for k, v in points.items() if isinstance(v, list)} if isinstance(points, dict) else {}
    )
    names = ("tokens", "threads", "dtype", "step", "machine", "runtime", "whole")
    facts = {"operators": counts, **_entries(content, names)}
    return Description(
        "timings",
        f"what {sum(counts.values())} operators take on a machine",
        facts=facts,
        next=(f"lowrank compress MODEL --latency 0.5 --table {quoted(path)}",),
    )


def _config(path: Path, content: Content) -> Description:
    facts = {name: tidy(content[name]) for name in OF_CONFIGS if name in content}
    return Description(
        "config",
        f"the config of a {tidy(content.get('model_type'))} model of transformers",
        facts=facts,
        next=(f"lowrank inspect {quoted(path.parent)}", f"lowrank analyze WEIGHTS --config {quoted(path)}"),
    )


def _adapter(path: Path, content: Content) -> Description:
    names = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules", "task_type")
    facts = _entries(content, names)
    return Description(
        "adapter",
        f"an adapter of PEFT ({tidy(content.get('peft_type'))}, rank {tidy(content.get('r'))})",
        facts=facts,
        next=(f"lowrank compress MODEL --lora {quoted(path.parent)} --budget 0.5",),
    )


def _index(path: Path, content: Content) -> Description:
    places = content["weight_map"] if isinstance(content["weight_map"], dict) else {}
    shards = Counter(str(tidy(name)) for name in places.values())
    return Description(
        "index",
        f"the index of {len(places)} tensors in {len(shards)} files",
        facts={"files": dict(shards)},
        next=(f"lowrank analyze {quoted(path.parent)}",),
    )


def _tokenizer(path: Path, content: Content) -> Description:
    model = content["model"] if isinstance(content["model"], dict) else {}
    vocab = model.get("vocab")
    facts = {"type": tidy(model.get("type")), "vocabulary": len(vocab) if isinstance(vocab, list | dict) else None}
    return Description(
        "tokenizer",
        f"a tokenizer ({facts['type']}, {facts['vocabulary']} entries)",
        facts=facts,
        next=(f"lowrank analyze MODEL --tokenizer {quoted(path)}",),
    )


OURS = {
    "analysis": _analysis,
    "plan": _plan,
    "report": _report,
    "model": _model,
    "timings": _timings,
    "sweep": _sweep,
    "tune": _tune,
}
"""By the kind in the schema."""
OTHERS = (
    ({"points", "tokens", "threads"}, _timings),
    ({"peft_type"}, _adapter),
    ({"model_type"}, _config),
    ({"weight_map"}, _index),
    ({"model", "added_tokens"}, _tokenizer),
)
"""By the keys that tell them."""
