"""How near a result is to the dense model: the worst set is in the headline, in the measure of the output."""

from __future__ import annotations

import html
import re
from typing import Any

from pages import block_names, page_with

from lowrank.report.fidelity import rows_of_sets
from lowrank.report.page.webpage import rendered
from lowrank.results.parts import Quality

SETS: list[dict[str, Any]] = [
    {"name": "your data", "fidelity": 0.98, "samples": 50, "ranking": 0.98, "spearman": 0.99, "cosine": 0.97},
    {
        "name": "passages of 256 tokens",
        "fidelity": 0.61,
        "samples": 100,
        "ranking": 0.61,
        "spearman": 0.7,
        "cosine": 0.6,
    },
]
QUALITY: dict[str, Any] = {
    "kind": "embedding",
    "fidelity": 0.61,
    "worst": "passages of 256 tokens",
    "cosine": 0.97,
    "sets": SETS,
}
ROUNDED = {**QUALITY, "dtype": "int8", "sets": [{**row, "fidelity": 0.995} for row in SETS]}


def text_of(quality: dict[str, Any]) -> str:
    """What the page says, without its style and script."""
    page = rendered(page_with(block_names(4), quality=quality))
    body = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<wbr>|<[^>]*>", "", body))


def test_the_worst_set_is_in_the_headline() -> None:
    quality = Quality.from_json(QUALITY)
    assert "61 % on the worst of 2 sets (passages of 256 tokens)" in quality.headline
    assert Quality.from_json({"cosine": 0.9}).headline == ""
    assert "on your data." in Quality.from_json({**QUALITY, "worst": "your data", "sets": SETS[:1]}).headline
    report = page_with(block_names(4), quality=QUALITY).report
    assert report is not None and quality.headline in str(report)


def test_sets_stand_side_by_side_with_the_dense_model_in_fewer_bits() -> None:
    rows = rows_of_sets(Quality.from_json({**QUALITY, "dense_rounded": ROUNDED}))
    assert [row.is_worst for row in rows] == [False, True]
    assert [row.dense_rounded for row in rows] == [0.995, 0.995] and rows[0].figures == {
        "spearman": 0.99,
        "cosine": 0.97,
    }
    page = text_of({**QUALITY, "dense_rounded": ROUNDED})
    for told in ("61\xa0%", "99.5\xa0%", "98\xa0%", "passages of 256 tokens", "similarities, Spearman", "0.7000"):
        assert told in page, told


def test_no_report_says_embeddings_of_what_are_scores() -> None:
    sets = [{"name": "random inputs", "fidelity": 0.9, "samples": 4, "agreement": 0.9, "kl": 0.1}]
    quality = {"kind": "logits", "fidelity": 0.9, "worst": "random inputs", "agreement": 0.9, "kl": 0.1, "sets": sets}
    page = text_of(quality)
    assert "first choice" in page and "dense embeddings" not in page and "cosine" not in page
