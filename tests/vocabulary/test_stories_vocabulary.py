"""The tokenizer of a real story teller, where `LOWRANK_DATA` names a folder with models/stories260K."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from vocabularies import TEXTS, check_same

from lowrank.backends.vocabulary.counts import count_ids, most_used
from lowrank.backends.vocabulary.pieces import read_pieces
from lowrank.calibrate.builtin import judging_text
from tools.convert_stories import read_tokenizer

FOLDER = Path(os.environ.get("LOWRANK_DATA", "none")) / "models" / "stories260K"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER.exists(), reason="LOWRANK_DATA has no stories260K")]


def test_a_real_tokenizer_with_bytes() -> None:
    content = json.loads(read_tokenizer(FOLDER / "tok512.bin", 512).backend_tokenizer.to_str())
    pieces = read_pieces(content)
    story = (FOLDER / "greedy_output.txt").read_text(encoding="utf-8")
    counts = count_ids(content, [story])
    keep = most_used(pieces, counts, (), 400)
    assert len(keep) > 380
    assert check_same(content, keep, [*story.split(), *TEXTS, *judging_text("lines")[:200]]) > 100
    used = {int(i) for i in counts.nonzero()[0]}
    assert check_same(content, used, [story]) == 1
