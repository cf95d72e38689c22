"""Names: what patterns select, and which role a name suggests."""

from __future__ import annotations

import pytest

from lowrank.core.match import looks_like_embedding, matches, name_filter, role_of
from lowrank.core.verdict import kind_of
from lowrank.core.weight import Layer, Weight
from lowrank.errors import PatternError

NAMES = [
    "layer.0.attention.query.weight",
    "layer.1.attention.query.weight",
    "layer.0.ffn.weight",
    "head.weight",
]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("query", 2),
        ("layer.0", 2),
        ("attention.query", 2),
        ("*.ffn", 1),
        ("re:layer\\.[01]", 3),
        ("head.weight", 1),
        ("lay", 0),
    ],
)
def test_patterns(pattern: str, count: int) -> None:
    assert sum(matches(pattern, name) for name in NAMES) == count


def test_exclude_beats_include() -> None:
    wanted = name_filter(["attention"], ["layer.1"], NAMES)
    assert [name for name in NAMES if wanted(name)] == NAMES[:1]


def test_a_pattern_that_selects_nothing_suggests_names() -> None:
    with pytest.raises(PatternError, match=r"'querry' selects no weight; did you mean"):
        name_filter(["querry"], [], NAMES)
    with pytest.raises(PatternError, match="not a regular expression"):
        name_filter(["re:["], [], NAMES)


def roles(shapes: dict[str, tuple[int, int]]) -> dict[str, str]:
    linear = (Layer("layer", "linear"),)
    return role_of([Weight(name, *shape, "float32", "projection", linear) for name, shape in shapes.items()])


def test_roles_come_from_numbered_blocks() -> None:
    found = roles({"encoder.layer.0.q.weight": (8, 8), "pooler.dense.weight": (8, 8), "classifier.weight": (2, 8)})
    assert found == {
        "encoder.layer.0.q.weight": "projection",
        "pooler.dense.weight": "head",
        "classifier.weight": "head",
    }


def test_a_model_without_blocks_has_projections_but_no_classifier_among_them() -> None:
    found = roles({"fc1.weight": (64, 32), "fc2.weight": (32, 64), "fc3.weight": (4, 32), "score.weight": (32, 32)})
    assert list(found.values()) == ["projection", "projection", "head", "head"]


def test_a_sequential_classifier_is_not_a_block() -> None:
    found = roles({"layers.0.fc.weight": (8, 8), "classifier.0.weight": (8, 8), "classifier.3.weight": (2, 8)})
    assert list(found.values()) == ["projection", "head", "head"]


@pytest.mark.parametrize(
    "name", ["embeddings.word_embeddings.weight", "transformer.wte.weight", "shared.weight", "pos_emb.weight"]
)
def test_embeddings_by_name(name: str) -> None:
    assert looks_like_embedding(name)
    assert not looks_like_embedding("layer.0.query.weight")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("encoder.layer.3.attention.query.weight", "attention.query"),
        ("h.10.c_fc.weight", "c_fc"),
        ("fc.weight", "fc"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind
