"""`README.md` of a saved Hugging Face model: its card, renewed whenever it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank.artifacts import parse_json, read_json
from lowrank.artifacts.files import RECORD_FILE, atomic
from lowrank.results.report import Report

CARD_FILE, CONFIG_FILE, POOLING = "README.md", "config.json", "1_Pooling"


def write_card(folder: Path, report: Report, graphs: Sequence[str] = ()) -> None:
    """Write the card of a saved model; a model that is none of transformers has none.

    Args:
        folder: `model/` of a run; its README.md is the original's, or one that was written here.
        report: what was measured.
        graphs: the files under `onnx/`.
    """
    config = _config(folder)
    rebuild = read_json(folder / RECORD_FILE, "model")["rebuild"]
    if config is None or "class" not in rebuild:
        return
    from lowrank.report.card import base_of, card_of, read_card

    path = folder / CARD_FILE
    original = read_card(path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "")
    base = base_of(original, report.provenance.source or {}, config)
    text = card_of(
        report, original, base, rebuild["class"], _loads_it(rebuild["class"]), (folder / POOLING).is_dir(), graphs
    )
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _config(folder: Path) -> dict[str, Any] | None:
    try:
        content = parse_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _loads_it(kind: str) -> str:
    """The class of transformers by which people load a model of some class.

    Example:
        >>> _loads_it("BertForSequenceClassification"), _loads_it("BertModel"), _loads_it("CLIPModel")
        ('AutoModelForSequenceClassification', 'AutoModel', 'AutoModel')
    """
    head = kind.partition("For")[2]
    if kind.endswith("LMHeadModel"):
        return "AutoModelForCausalLM"
    if not head:
        return "AutoModel" if kind.endswith("Model") else kind
    import transformers

    return f"AutoModelFor{head}" if hasattr(transformers, f"AutoModelFor{head}") else kind
