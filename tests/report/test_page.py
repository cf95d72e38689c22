"""The page as a file: what is in it, what can never be in it, and how large it is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, SWEEP, analysis_of, block_names, page_with, plan_of, point

import lowrank.report.page.webpage as webpage
from lowrank.core.structures import STRUCTURES
from lowrank.core.structures.base import Option
from lowrank.report.page.page_data import page_data_of
from lowrank.report.page.positions import part_of, places_of, row_labels
from lowrank.report.page.spectra import choices, picked
from lowrank.report.page.webpage import command_of, in_script, rendered
from lowrank.report.terminal.terminal import harmless
from lowrank.results.parts import Provenance

STYLE = Path(webpage.__file__).with_name("style.css").read_text(encoding="utf-8")
VOID = {"meta", "link", "br", "wbr", "input", "img", "line", "rect", "circle", "polyline", "polygon"}


class Elements(HTMLParser):
    """What a page consists of: its elements in order, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"{self.open} are never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data

    def tags(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag in names]


def test_everything_is_on_the_page() -> None:
    page = Elements(rendered(page_with(block_names(12))))
    for told in (
        "tiny",
        "0.9900",
        "2.50 times as fast as dense",
        "dense int8",
        "Where the parameters were, and where they are now",
        "feed-forward",
        "a note of the report",
        "an embedding table",
        "lowrank compress 'my model' --budget 0.5",
        "Held-out loss while healing",
        "lowrank-0.5-int8: 600,000 bytes",
        "a0",
        "b0",
        "c0",
    ):
        assert told in page.text, told
    assert page.tags("html")[0]["lang"] == "en"
    assert len([svg for svg in page.tags("svg") if svg["class"] == "spectrum"]) == 12
    assert len([svg for svg in page.tags("svg") if svg["class"] == "chart"]) == 2
    # Two lines for each spectrum, the plain one and that in the metric of the data.
    lines = [line["class"] for line in page.tags("polyline")]
    assert lines.count("line plain") == 12 and lines.count("line data") == 12 + 2


def test_pictures_have_names_and_descriptions() -> None:
    page = rendered(page_with(block_names(4)))
    drawn = re.findall(r"<svg class=\"(?:spectrum|chart)\".*?</svg>", page, re.DOTALL)
    assert len(drawn) == 6
    for svg in drawn:
        assert re.search(r'role="img"', svg) and re.search(r"<title>[^<]+</title><desc>[^<]{20,}</desc>", svg)
    # Little pictures of the key have their words beside them.
    assert all('aria-hidden="true"' in key for key in re.findall(r'<svg class="key.*?>', page))


@pytest.mark.parametrize("names", [HOSTILE, (HOSTILE[0],)])
def test_names_are_text_wherever_they_stand(names: tuple[str, ...]) -> None:
    facts = page_with(names, notes=[HOSTILE[0]], problems=[HOSTILE[2]])
    facts = replace(facts, sweep=replace(SWEEP, points=[*SWEEP.points, point(HOSTILE[1], 5, 1.0, 1.0)]))
    page = Elements(rendered(facts))
    plain = Elements(rendered(page_with(["a.0.b", "a.1.b"], problems=["one"])))
    assert {tag for tag, _ in page.found} <= {tag for tag, _ in plain.found} | {"line", "polyline"}
    known = {name for _, attributes in plain.found for name in attributes}
    assert {name for _, attributes in page.found for name in attributes} - known <= {"rowspan"}
    assert not any(name.startswith("on") for _, attributes in page.found for name in attributes)
    # One block of data and one script, and the data are what they were.
    data, script = page.scripts
    assert script.strip() == Path(webpage.__file__).with_name("script.js").read_text().strip()
    assert sorted(entry["name"] for entry in json.loads(data)) == sorted(names)
    for name in names:
        assert harmless(name).removesuffix(".weight") in page.text.replace("\u200b", "")
    assert not {"\u202e", "\x1b", "\x00"} & set(page.text)


def test_data_cannot_end_its_element() -> None:
    for name in HOSTILE:
        text = in_script({"name": name})
        assert not set("<>&") & set(text) and json.loads(text) == {"name": name}


def test_nothing_is_fetched() -> None:
    text = rendered(page_with(block_names(8)))
    page = Elements(text)
    assert not page.tags("img", "iframe", "object", "embed", "base", "form", "image", "use", "audio", "video")
    links = [
        attributes[name]
        for _, attributes in page.found
        for name in ("src", "href", "xlink:href", "action")
        if name in attributes
    ]
    assert links and all(link is not None and link.startswith(("#", "data:,")) for link in links)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|import\(", text)
    (policy,) = [meta["content"] for meta in page.tags("meta") if "http-equiv" in meta]
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe-eval" not in policy


@pytest.mark.parametrize(("count", "limit"), [(300, 2_000_000), (1200, 2_000_000)])
def test_the_size_has_a_limit(count: int, limit: int) -> None:
    text = rendered(page_with(block_names(count), rank=64, uniform=True))
    assert len(text.encode()) < limit
    drawn = len(re.findall(r'<svg class="spectrum"', text))
    assert drawn == min(count, webpage.SPECTRA)
    # What is left out is said.
    assert ("are not drawn" in text) == (count > drawn)


def test_an_analysis_alone() -> None:
    for data in (True, False):
        facts = page_data_of(
            analysis_of(block_names(8), data=data), provenance=Provenance(command=["lowrank", "analyze", "x"])
        )
        page = Elements(rendered(facts))
        assert "lowrank analyze x" in page.text and "Predicted error" not in page.text
        assert "in the metric of the data" in page.text or not data
        assert "compressed" not in page.text and "Quality" not in page.text
        assert not [rect for rect in page.tags("rect") if rect.get("class") == "kept"]


def test_what_was_not_measured_is_left_out() -> None:
    page = rendered(page_with(block_names(4), latency=None, quality=None, onnx=None, parity=None, healing=[]))
    assert "relative error of the weights" in page and "Latency" not in page and "Healing" not in page
    page = rendered(page_with(block_names(4), latency=None, files={}))
    assert "Size of the tensors" in page


def test_tasks_stand_at_the_top() -> None:
    task = {
        "task": "sts:<b>.tsv",
        "metric": "spearman",
        "higher_is_better": True,
        "dense": 0.8672,
        "compressed": 0.8431,
        "drop": 0.0241,
        "low": 0.01,
        "high": 0.04,
        "samples": 1500,
        "resamples": 1000,
    }
    alone = {**task, "task": "lm:text", "higher_is_better": False, "low": None, "high": None, "samples": None}
    page = Elements(rendered(page_with(block_names(4), quality={"cosine": 0.9, "tasks": [task, alone]})))
    for told in ("0.8431", "spearman on sts:<b>.tsv", "+0.0241", "+0.0100 to +0.0400", "1,500", "+2.41\xa0%"):
        assert told in page.text, told


def test_every_structure_has_its_words() -> None:
    analysis = analysis_of(["a.0.b", "a.1.b"])
    plan = plan_of(analysis)
    told = set()
    for structure in STRUCTURES:
        options = tuple(Option(o.group, structure, 4, 10, 0.01, "int8") for o in plan.options)
        changed = type(plan)(plan.analysis, plan.budget, plan.selector, options, plan.dense_cost)
        if structure == "neurons":
            assert "4 of 24 neurons" in choices(analysis, changed)["a.0.b"].words
        told.add(choices(analysis, changed)["a.0.b"].words)
    assert len(told) == len(STRUCTURES)


def test_the_plan_stands_among_the_budgets() -> None:
    points = page_with(block_names(4))
    assert points.trade_off is not None
    text = Elements(rendered(points)).text
    assert "predicted relative error of the weights" in text and "chosen" in text and "--curve" not in text
    # None of which could be met, or none asked for: the plan's own prediction is there.
    for trade_off in (replace(points.trade_off, points=[]), None):
        text = Elements(rendered(replace(points, trade_off=trade_off))).text
        assert "It was predicted to change the weights by a relative error of" in text and "--curve" in text
    assert "It was predicted" not in Elements(rendered(page_data_of(analysis_of(block_names(4))))).text


def test_places() -> None:
    bert = ["encoder.layer.0.attention.self.query.weight", "encoder.layer.1.output.dense.weight"]
    assert [p.row for p in places_of(bert).values()] == ["encoder.layer.0", "encoder.layer.1"]
    # Stages of blocks, whose blocks all have the same layers; and experts, of which every block has all.
    swin = [f"layers.{i}.blocks.{j}.{k}" for i in range(2) for j in range(2 + 2 * i) for k in ("q", "k")]
    assert len({p.row for p in places_of(swin).values()}) == 6
    experts = [f"layers.{i}.{k}" for i in range(3) for k in ("q", "experts.0.up", "experts.1.up")]
    assert {p.kind for p in places_of(experts).values()} == {"q", "experts.0.up", "experts.1.up"}
    assert (
        places_of(["MatMul_12"])["MatMul_12"].row == "" and places_of(["net.3.weight"])["net.3.weight"].kind == "net.3"
    )
    assert row_labels(["encoder.block.0", "decoder.block.0", ""]) == {
        "encoder.block.0": "encoder.block.0",
        "decoder.block.0": "decoder.block.0",
        "": "Outside of blocks",
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoder.layer.0.attention.output.dense.weight", "attention"),
        ("encoder.layer.0.output.dense.weight", "feed-forward"),
        ("model.layers.3.self_attn.k_proj.weight", "attention"),
        ("model.layers.3.mlp.gate_proj.weight", "feed-forward"),
        ("transformer.h.0.attn.c_attn.weight", "attention"),
        ("transformer.h.0.mlp.c_proj.weight", "feed-forward"),
        ("decoder.block.1.layer.1.EncDecAttention.q.weight", "attention"),
        ("decoder.block.1.layer.2.DenseReluDense.wo.weight", "feed-forward"),
        ("MatMul_12", "rest"),
    ],
)
def test_parts_of_a_model(name: str, part: str) -> None:
    assert part_of(name, "projection") == part
    assert part_of("wte.weight") == part_of("embeddings.word.weight") == "embeddings"
    assert part_of("lm_head.weight") == "head" and part_of(name, "conv") == "convolutions"


def test_parts_add_up_to_the_model() -> None:
    facts = page_with(block_names(8))
    assert facts.report is not None
    assert sum(part.before for part in facts.parts) == facts.report.model.params_before
    assert abs(sum(part.after or 0 for part in facts.parts) - facts.report.model.params_after) <= len(facts.parts)


def test_points_of_a_spectrum() -> None:
    for full, count in ((1, 12), (24, 48), (4096, 12), (4096, 48)):
        ranks = picked(full, count).tolist()
        assert ranks[0] == 1 and ranks[-1] == full and len(ranks) <= max(count, 1) and ranks == sorted(set(ranks))


def test_a_command_can_be_typed_again() -> None:
    assert (
        command_of(Provenance(command=["/x/lowrank/__main__.py", "analyze", "a b"]))
        == "python -m lowrank analyze 'a b'"
    )
    assert command_of(Provenance(command=["/x/bin/lowrank", "analyze", "$(rm)"])) == "lowrank analyze '$(rm)'"
    assert command_of(Provenance()) == ""


def colours(text: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", text))


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_apart(theme: str) -> None:
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")
    known: dict[str, Any] = colours(light)
    if theme == "dark":
        changed = colours(dark)
        assert changed.keys() == known.keys(), "a colour of the light theme would stay in the dark"
        known = changed
    pairs = [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("paper", "card")]
    pairs += [(f"ramp-{i}-ink", f"ramp-{i}") for i in range(7)] + [("warn-ink", "warn-paper"), ("ink", "soft")]
    assert {name for pair in pairs for name in pair} | {"line"} == known.keys(), "a colour that is not tested"
    for ink, ground in pairs:
        assert contrast(known[ink], known[ground]) >= 4.5, (ink, ground)
    # The ramp goes one way, so that it is one without its hues too.
    ramp = [luminance(known[f"ramp-{i}"]) for i in range(7)]
    assert ramp == sorted(ramp, reverse=theme == "light")
