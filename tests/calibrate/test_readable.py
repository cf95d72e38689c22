"""Text that a tokenizer cannot read is refused, and what it reads badly comes with a warning that names a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import tiny_transformer, write_letters

from lowrank.backends import Opening, open_model
from lowrank.backends.base import Backend
from lowrank.calibrate.data import Calibration, load_calibration, training_batches
from lowrank.calibrate.said import said_calibration
from lowrank.calibrate.samples import TextSource, read_text_samples
from lowrank.calibrate.tokenize import Tokenizer, open_tokenizer, usual_maximum
from lowrank.errors import CalibrationError, TaskError
from lowrank.evaluate.tasks.inputs import Texts

ENGLISH = [f"the cat sat on the mat and the {a} dog ran {b}" for a in ("red", "big", "old") for b in "abcdefgh"]
GREEK = [f"η γάτα κάθισε στο χαλί {letter}" for letter in "αβγδεζηθικλμνξοπ"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("letters")
    tiny_transformer().save_pretrained(place)
    write_letters(place)
    return place


@pytest.fixture(scope="module", params=["folder", "file"])
def backend(request: pytest.FixtureRequest, folder: Path) -> Backend:
    """A BERT that reads letters, with its tokenizer as a folder or as a file."""
    if request.param == "folder":
        return open_model(folder)
    return open_model(folder / "model.safetensors", Opening(tokenizer=str(folder / "tokenizer.json")))


def loaded(backend: Backend, path: Path, lines: list[str], mixed: bool = False) -> Calibration:
    path.write_text("\n".join(lines), encoding="utf-8")
    found = load_calibration(backend, path, mixed=mixed)
    assert found is not None
    return found


def test_unknown_pieces(backend: Backend, tmp_path: Path) -> None:
    assert backend.tokenizer is not None
    tokenizer = open_tokenizer(backend.tokenizer)
    assert (tokenizer.unknown, tokenizer.mask, tokenizer.frame) == (1, 4, [2, 3])
    path = tmp_path / "a.txt"
    assert loaded(backend, path, ENGLISH).notes == ()
    with pytest.raises(CalibrationError, match="100 % of the text is unknown.*as in line 1, 'η γάτα.*--tokenizer"):
        loaded(backend, path, GREEK)
    some = [f"{english} {' '.join(greek.split()[:5] * 2)}" for english, greek in zip(ENGLISH, GREEK, strict=False)]
    (note,) = loaded(backend, path, [ENGLISH[0], *some]).notes
    assert "of the text is unknown" in note and "as in line 2, 'the cat" in note


def test_text_that_is_cut_into_many_pieces(tmp_path: Path) -> None:
    def encode(text: list[str], most: int | None, special: bool) -> list[list[int]]:
        # Latin words are one piece each, other letters one piece a byte, as of byte-level tokenizers.
        rows = [[7] * sum(1 if word.isascii() else len(word.encode()) for word in each.split()) for each in text]
        return [row[:most] for row in rows]

    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"{line} {i}" for i, line in enumerate(GREEK)), encoding="utf-8")
    tokenizer = Tokenizer(Path("bytes"), encode)
    assert "times as many pieces a byte as English" in read_text_samples(tokenizer, 64, TextSource(path=path)).notes[-1]

    def reversed_(text: list[str], most: int | None, special: bool) -> list[list[int]]:
        rows = [[7] * sum(len(word) if word.isascii() else 1 for word in each.split()) for each in text]
        return [row[:most] for row in rows]

    found = read_text_samples(Tokenizer(Path("greek"), reversed_), 64, TextSource(path=path, mixed=True))
    assert found.added == [] and "no built-in text is mixed with yours" in found.notes[-1]


def test_samples_of_next_to_no_tokens(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    (short,) = loaded(backend, path, ["a", "b", "c", "the cat sat"]).notes
    assert "fewer than 3 tokens, as in line 1, 'a'" in short
    (same,) = loaded(backend, path, ["The Cat", "the cat", "THE CAT"]).notes
    assert "all 3 samples are the same" in same
    blank = loaded(backend, path, [*ENGLISH, "\u200b"])
    assert "of 1 samples the tokenizer makes no tokens" in blank.notes[0]
    assert blank.provenance["samples"] == len(ENGLISH)
    with pytest.raises(CalibrationError, match="makes no tokens of the text"):
        loaded(backend, path, ["\u200b", "\u200c"])


def test_mixed_data_are_learnt_from_but_for_what_judges(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    found = loaded(backend, path, ENGLISH * 2, mixed=True)
    assert "built-in ones" in found.notes[0]
    rows = {
        name: [ids.tobytes() for feed in feeds for ids in feed["input_ids"]]
        for name, feeds in (
            ("judged", (*found.heldout, *found.report)),
            ("learnt", training_batches(found, path, mixed=True)),
        )
    }
    assert rows["learnt"] and not set(rows["judged"]) & set(rows["learnt"])


def test_long_samples_are_cut_at_the_usual_maximum(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to(folder)
    assert usual_maximum(open_model(folder)) == 64
    found = loaded(open_model(folder), tmp_path / "a.txt", [" ".join(ENGLISH), *ENGLISH])
    assert max(feed["input_ids"].shape[1] for feed in (*found.fit, *found.heldout, *found.report)) == 64
    noted = folder / "sentence_bert_config.json"
    noted.write_text('{"max_seq_length": 40}')
    try:
        assert usual_maximum(open_model(folder)) == 40
    finally:
        noted.unlink()


def test_tasks_refuse_what_cannot_be_read(folder: Path) -> None:
    texts = Texts.of("sts:x", open_model(folder))
    assert texts.batches(ENGLISH).feeds
    with pytest.raises(TaskError, match="100 % of the task's text is unknown"):
        texts.batches(GREEK)


def test_a_causal_model_on_what_it_says(tmp_path: Path, folder: Path) -> None:
    tiny_transformer("gpt2").save_pretrained(tmp_path)
    write_letters(tmp_path, framed=False)
    backend = open_model(tmp_path)
    found, again, other = (said_calibration(backend, 12, seed) for seed in (0, 0, 1))
    assert found.provenance["samples"] == 12 and found.provenance["tokens"] == 12 * 64
    assert found.provenance == again.provenance != other.provenance
    # What it says is likely by its own scores: more so than other tokens would be.
    for feed in found.fit:
        scores = backend.run(feed)[:, 3:-1].astype(np.float64)
        log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        said = np.take_along_axis(log_p, feed["input_ids"][:, 4:, None], -1)
        entropy = -(np.exp(log_p) * log_p).sum(-1)
        assert -said.mean() == pytest.approx(entropy.mean(), rel=0.1) and said.mean() > log_p.mean()
    with pytest.raises(CalibrationError, match="causal language models, and this is none"):
        said_calibration(open_model(folder))
    with pytest.raises(CalibrationError, match="come with a tokenizer"):
        said_calibration(open_model(tiny_transformer("gpt2")))
