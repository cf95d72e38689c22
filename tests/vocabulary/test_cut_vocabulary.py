"""`lowrank vocabulary` and `cut_vocabulary`: what they write, what they promise, and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vocabularies import EXTRA_ROWS, TEXTS, content_of, write_model

import lowrank
from lowrank.artifacts import parse_json
from lowrank.artifacts.files import read_json
from lowrank.backends.vocabulary.counts import tokenizer_of, unread_ids
from lowrank.backends.vocabulary.named_ids import Renumbering
from lowrank.backends.vocabulary.pieces import read_pieces
from lowrank.backends.vocabulary.rows import cut_rows
from lowrank.errors import UnsupportedModel, VocabularyError
from lowrank.pipeline import cutting_vocabulary
from lowrank.results.vocabulary import CutVocabulary


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the built-in text, of which all is read in a second."""
    for name in ("builtin_text", "judging_text"):
        whole = getattr(cutting_vocabulary, name)
        monkeypatch.setattr(cutting_vocabulary, name, lambda style, whole=whole: whole(style)[:20])


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model: of each token, so that its fidelity is not measured."""
    return write_model(tmp_path_factory.mktemp("whole") / "bert", "wordpiece")


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    """A model of sentence embeddings."""
    import transformers as t

    folder = write_model(tmp_path / "embedder", "wordpiece")
    t.BertModel.from_pretrained(folder).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def _hidden(folder: Path, text: str) -> torch.Tensor:
    import transformers as t

    model = t.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(**t.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).last_hidden_state


def test_by_default_nothing_is_lost(tagger: Path, tmp_path: Path) -> None:
    content = content_of("wordpiece")
    report = lowrank.cut_vocabulary(tagger, tmp_path / "cut")
    assert report.rows_after == report.rows_before - EXTRA_ROWS - len(unread_ids(content))
    assert report.params_after < report.params_before and report.bytes_after < report.bytes_before
    (row,) = report.texts
    assert (row.longer, row.unknown_after) == (1, row.unknown_before)
    assert report.quality is None and "of each token" in report.notes[-1]
    stored = read_json(tmp_path / "cut" / CutVocabulary.file, "cut_vocabulary")
    assert CutVocabulary.from_json(stored).to_json() == report.to_json()
    for text in TEXTS[:2]:
        assert torch.allclose(_hidden(tmp_path / "cut", text), _hidden(tagger, text), atol=1e-5)


@pytest.mark.slow
def test_texts_of_ones_own_stay_as_they_were(
    cli: Callable[..., Any], embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\n" + "".join(f'"{text}",1\n' for text in TEXTS[:2]), encoding="utf-8")
    monkeypatch.setattr("lowrank.evaluate.same_texts.COUNTS", (5, 3, 3))
    options = ("--text", texts, "--column", "text", "--keep")
    done = cli("vocabulary", embedder, "-o", tmp_path / "cut", *options, 0.05)
    assert done.code == 1 and not (tmp_path / "cut").exists()
    least = done.err.split("at least --keep ")[1].split(",")[0]
    done = cli("vocabulary", embedder, "-o", tmp_path / "cut", *options, least)
    assert done.code == 0 and "Same answers as the dense model" in done.out
    assert f"Next: lowrank compress {tmp_path / 'cut'}" in " ".join(done.out.split())
    report = CutVocabulary.from_json(read_json(tmp_path / "cut" / CutVocabulary.file, "cut_vocabulary"))
    own = report.texts[1]
    assert own.name == str(texts) and own.longer == 1 and own.unknown_after == own.unknown_before
    assert report.rows_after <= float(least) * report.rows_before + 1
    assert report.quality is not None and report.quality.sets and report.quality.fidelity is not None
    assert report.quality.fidelity == min(row.fidelity for row in report.quality.sets)
    for text in TEXTS[:2]:
        assert torch.allclose(_hidden(tmp_path / "cut", text), _hidden(embedder, text), atol=1e-5)


@pytest.mark.slow
def test_it_is_the_same_every_time_and_goes_on_to_be_compressed(
    cli: Callable[..., Any], embedder: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        done = cli("vocabulary", embedder, "-o", tmp_path / name, "--keep", "0.8", "--json")
        told = json.loads(done.out)
        assert done.code == 0 and told["rows_after"] < told["rows_before"]
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.is_file()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir() if path.is_file()}
    done = cli("compress", tmp_path / "a", "-o", tmp_path / "run", "--budget", "0.5", "--no-timing")
    assert done.code == 0 and f"of the {told['rows_before']:,} tokens of its original" in " ".join(done.out.split())


@pytest.mark.slow
def test_scripts_stay_whole(tagger: Path, tmp_path: Path) -> None:
    pieces = read_pieces(content_of("wordpiece"))
    lowrank.cut_vocabulary(tagger, tmp_path / "cut", languages=["en"])
    left = set(tokenizer_of(parse_json((tmp_path / "cut" / "tokenizer.json").read_bytes())).get_vocab())
    assert {"the", "quick", "Straße".lower().replace("ß", "ss")} & set(pieces.ids) <= left
    assert "с" in pieces.ids and "с" not in left


def test_bad_input_is_refused_and_costs_nothing(cli: Callable[..., Any], tagger: Path, tmp_path: Path) -> None:
    bare, run, graph = tmp_path / "bare", tmp_path / "run", tmp_path / "model.onnx"
    shutil.copytree(tagger, bare)
    (bare / "tokenizer.json").unlink()
    run.mkdir()
    (run / "analysis.json").write_text("{}")
    graph.write_bytes(b"graph")
    target = tmp_path / "cut"
    for model, options, words in (
        (bare, (), "write it with"),
        (run, (), "is a run"),
        (graph, (), "is a file"),
        (tmp_path / "none", (), "is not there"),
        (tagger, ("--keep", "0"), "above 0"),
        (tagger, ("--keep", "1.5"), "above 0"),
        (tagger, ("--keep", "nan"), "above 0"),
        (tagger, ("--keep-languages", "xx"), "no language"),
        (tagger, ("--text", tmp_path / "none.txt"), "there is no"),
    ):
        done = cli("vocabulary", model, "-o", target, *options)
        assert done.code == 1 and words in done.err, done.err
        assert not target.exists() or not any(target.iterdir())
    target.mkdir(exist_ok=True)
    (target / "mine.txt").write_text("mine")
    done = cli("vocabulary", tagger, "-o", target)
    assert done.code == 1 and "is not empty" in done.err and [path.name for path in target.iterdir()] == ["mine.txt"]
    done = cli("vocabulary", tagger, "-o", tagger / "cut")
    assert done.code == 1 and "is inside of" in done.err and not (tagger / "cut").exists()
    assert cli("vocabulary", tagger, "-o", tagger).code == 1 and (tagger / "model.safetensors").is_file()
    assert cli("vocabulary", tagger).code == 2


def test_where_nothing_can_go_it_says_so(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "gpt", "byte_bpe")
    config = parse_json((folder / "config.json").read_bytes())
    config["vocab_size"] -= EXTRA_ROWS
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(VocabularyError, match=r"all \d+ rows would stay.*--keep 0.75"):
        lowrank.cut_vocabulary(folder, tmp_path / "cut")


def test_a_second_table_of_tokens_is_refused() -> None:
    import transformers as t

    model: Any = t.GPT2Model(t.GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=4, eos_token_id=1))
    model.embed_tokens_per_layer = torch.nn.Embedding(90, 8)
    with pytest.raises(UnsupportedModel, match="embed_tokens_per_layer is a second table"):
        cut_rows(model, np.arange(50))
    assert model.wte.num_embeddings == 97


def test_biases_of_words_that_are_gone_go() -> None:
    numbering = Renumbering({0: 0, 5: 1}, 9, 2)
    assert numbering.entry("sequence_bias", [[[5, 0], 2.0], [[3], 1]]) == [[[1, 0], 2.0]]
