"""Tasks: known answers, laws of the interval, and files that are not what they should be."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    OneByOne,
    sentences,
    shape_spectra_,
    tiny_bert_folder,
    tiny_config,
    tiny_transformer,
    two_factors,
    write_text,
    write_tokenizer,
)
from conftest import Outcome

import lowrank
from lowrank.backends import Backend
from lowrank.backends.base import signature_of
from lowrank.calibrate.data import Calibration, load_calibration
from lowrank.calibrate.judging_set import JudgingSet
from lowrank.calibrate.sets import judging_sets, random_feeds
from lowrank.errors import LowRankError
from lowrank.evaluate.dense_graph import DenseGraph
from lowrank.evaluate.dense_outputs import Room
from lowrank.evaluate.fidelity import Judge
from lowrank.evaluate.judges import Judges
from lowrank.evaluate.likeness import worst_of
from lowrank.evaluate.measure import Measures, Original, measure
from lowrank.evaluate.tasks.base import Score, Task, mean, share
from lowrank.evaluate.tasks.benchmark import Benchmark, compare, read_benchmark
from lowrank.evaluate.tasks.fidelity import of_worst
from lowrank.evaluate.tasks.language import windows_of
from lowrank.evaluate.tasks.probe import folds_of, probe_hits
from lowrank.evaluate.tasks.retrieval import ndcg
from lowrank.evaluate.tasks.sentences import spearman
from lowrank.evaluate.tasks.specs import read_tasks
from lowrank.progress import Clock, silent

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> Backend:
    return lowrank.open_model(bert_folder)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    import transformers as t

    folder = tmp_path_factory.mktemp("gpt")
    torch.manual_seed(0)
    config = tiny_config("gpt2", bos_token_id=2, eos_token_id=3)
    shape_spectra_(t.GPT2LMHeadModel(config).eval()).save_pretrained(folder)
    write_tokenizer(folder)
    return lowrank.open_model(folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    folder = tmp_path_factory.mktemp("vit")
    tiny_transformer("vit").save_pretrained(folder)
    return lowrank.open_model(folder)


def smaller(dense: Backend, rank: int = 8) -> Backend:
    chosen = [weight for weight in dense.weights if weight.role == "projection"]
    return dense.rewrite({w.name: two_factors(dense.read(w.name), rank) for w in chosen})


def one(spec: object, dense: Backend) -> Task:
    (task,) = read_tasks([str(spec)], dense)
    return task


def write_table(path: Path, header: list[str], rows: list[list[Any]], mark: str = "\t") -> Path:
    path.write_text("\n".join(mark.join(map(str, row)) for row in [header, *rows]), encoding="utf-8")
    return path


def write_pairs(path: Path, count: int = 40) -> Path:
    rng = np.random.default_rng(0)
    first, second = sentences(count, 1), sentences(count, 2)
    # Some pairs share words, so that a random model has something to find.
    rows = [[f"{a} {b}", b, round(rng.uniform(0, 5), 2)] for a, b in zip(first, second, strict=True)]
    return write_table(path, ["sentence1", "sentence2", "score"], rows)


def embedded(dense: Backend, text: str) -> np.ndarray:
    """A sentence at a time, by hand."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(dense.tokenizer)(text)["input_ids"]
    feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    return dense.run({**feed, "token_type_ids": np.zeros((1, len(ids)), np.int64)})[0].mean(0)


def test_spearman_is_that_of_scipy(bert: Backend, tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    task = one(f"sts:{write_pairs(tmp_path / 'pairs.tsv')}", bert)
    score = task.score(bert)
    rows = [line.split("\t") for line in (tmp_path / "pairs.tsv").read_text().splitlines()[1:]]
    cosines = []
    for first, second, _ in rows:
        a, b = embedded(bert, first), embedded(bert, second)
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert np.allclose(score.parts[:, 0], cosines, atol=1e-5)
    assert score.value == pytest.approx(spearmanr(score.parts[:, 0], score.parts[:, 1]).statistic, abs=1e-12)
    tied = np.round(np.random.default_rng(0).standard_normal((50, 2)))
    assert spearman(tied) == pytest.approx(spearmanr(*tied.T).statistic, abs=1e-12)
    assert (task.metric, score.samples, task.higher_is_better) == ("spearman", 40, True)


def test_quotes_in_tsv_are_text_and_in_csv_are_quotes(bert: Backend, tmp_path: Path) -> None:
    rows = [[f'the "cat {word}', "a dog", i] for i, word in enumerate(["sat", "ran", "on"])]
    write_table(tmp_path / "pairs.tsv", ["sentence1", "sentence2", "score"], rows)
    assert one(f"sts:{tmp_path / 'pairs.tsv'}", bert).score(bert).samples == 3
    (tmp_path / "pairs.csv").write_text('score,sentence2,sentence1\n1,"the cat, sat","a\ndog"\n2,cat,tree\n3,red,big\n')
    assert one(f"sts:{tmp_path / 'pairs.csv'}", bert).score(bert).samples == 3
    (tmp_path / "pairs.tsv.gz").write_bytes(gzip.compress((tmp_path / "pairs.tsv").read_bytes()))
    assert one(f"sts:{tmp_path / 'pairs.tsv.gz'}", bert).score(bert).samples == 3


@pytest.mark.parametrize(("mode", "pooled"), [("pooling_mode_cls_token", "cls"), ("pooling_mode_max_tokens", "max")])
def test_pooling_is_that_of_the_model(mode: str, pooled: str, tmp_path: Path) -> None:
    folder = tiny_bert_folder(tmp_path / "model")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False, mode: True}))
    dense = lowrank.open_model(folder)
    task: Any = one(f"sts:{write_pairs(tmp_path / 'pairs.tsv')}", dense)
    whole = dense.run(task.batches.feeds[0])
    vectors = task.texts.vectors(dense, task.batches)
    expected = whole[:, 0] if pooled == "cls" else whole.max(1)
    rows = [list(task.batches.places).index(i) for i in range(len(whole))]
    assert np.allclose(vectors[rows], expected, atol=1e-6)


def test_perplexity_is_that_of_torch(gpt: Backend, tmp_path: Path) -> None:
    write_text(tmp_path / "short.txt", 6)
    task = one(f"lm:{tmp_path / 'short.txt'}", gpt)
    from transformers import AutoTokenizer

    text = (tmp_path / "short.txt").read_text()
    ids = torch.tensor([AutoTokenizer.from_pretrained(gpt.tokenizer)(text)["input_ids"]])
    assert ids.shape[1] < 64
    module: Any = gpt.module
    with torch.no_grad():
        logits = module(input_ids=ids).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert task.score(gpt).value == pytest.approx(float(loss.exp()), rel=1e-5)

    write_text(tmp_path / "long.txt", 16)
    long = one(f"lm:{tmp_path / 'long.txt'}", gpt).score(gpt)
    ids = AutoTokenizer.from_pretrained(gpt.tokenizer)((tmp_path / "long.txt").read_text())["input_ids"]
    losses = []
    # Token by token, with the context that its window gives it.
    for start in range(1, len(ids)):
        begin = 0 if start < 64 else (start // 32 - 1) * 32
        begin = min(begin, max(0, len(ids) - 64))
        with torch.no_grad():
            scores = module(input_ids=torch.tensor([ids[begin:start]])).logits[0, -1]
        losses.append(-float(torch.log_softmax(scores, 0)[ids[start]]))
    assert long.parts[:, 1].sum() == len(ids) - 1
    assert long.value == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-4)


@pytest.mark.parametrize("count", [2, 7, 8, 9, 30])
def test_every_token_but_the_first_is_foreseen_once(count: int) -> None:
    windows = list(windows_of(range(count), 8))
    told = [token for w in windows for token in w.ids[len(w.ids) - w.counted :]]
    assert told == list(range(1, count))
    assert all(len(w.ids) <= 8 and w.counted < len(w.ids) for w in windows)
    assert all(len(w.ids) - w.counted >= 4 for w in windows[1:])


def test_ndcg_by_hand() -> None:
    # Two right ones of gains 2 and 1, found in the third and first place.
    found = 1 / np.log2(2) + 2 / np.log2(4)
    best = 2 / np.log2(2) + 1 / np.log2(3)
    assert ndcg([1, 0, 2], [2, 1]) == pytest.approx(found / best)
    assert ndcg([2, 1], [1, 2]) == 1 and ndcg([0, 0], [1]) == 0


def beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(sentences(30))]
    queries = [{"_id": f"q{i}", "text": corpus[i]["text"]} for i in range(10)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, [*queries, {"_id": "d3", "text": "the cat"}])))
    rows = [[f"q{i}", f"d{i}", 1] for i in range(10)] + [["d3", "d4", 1], ["q0", "d5", 0]]
    write_table(folder / "qrels/test.tsv", ["query-id", "corpus-id", "score"], rows)
    return folder


def test_a_query_finds_the_document_that_it_is(bert: Backend, tmp_path: Path) -> None:
    score = one(f"retrieval:{beir(tmp_path / 'beir')}", bert).score(bert)
    assert score.parts[:10].tolist() == [1.0] * 10
    assert score.samples == 11


def test_a_query_does_not_find_itself(bert: Backend, tmp_path: Path) -> None:
    folder = beir(tmp_path / "beir")
    write_table(folder / "qrels/test.tsv", ["query-id", "corpus-id", "score"], [["d3", "d3", 1], ["q1", "d1", 1]])
    assert one(f"retrieval:{folder}", bert).score(bert).parts.tolist() == [0.0, 1.0]


def test_a_head_is_taken_at_its_word(tmp_path: Path) -> None:
    folder = tiny_bert_folder(tmp_path / "model", head="yes")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "Bad", "1": "Good"}
    (folder / "config.json").write_text(json.dumps(config))
    dense = lowrank.open_model(folder)
    texts = sentences(20)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    module: Any = dense.module
    with torch.no_grad():
        told = [int(module(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts]
    labels = [["bad", "good"][i] for i in told[:15]] + [["good", "bad"][i] for i in told[15:]]
    rows = [[label, text] for label, text in zip(labels, texts, strict=True)]
    if len(set(labels)) == 1:
        rows.append([{"good": "bad", "bad": "good"}[labels[0]], texts[0]])
    task = one(f"classify:{write_table(tmp_path / 'x.tsv', ['label', 'text'], rows)}", dense)
    assert task.metric == "accuracy"
    assert task.score(dense).parts[:20].tolist() == [1.0] * 15 + [0.0] * 5
    numbered = [[int(label == "good"), text] for label, text in rows]
    write_table(tmp_path / "x.tsv", ["label", "text"], numbered)
    assert one(f"classify:{tmp_path / 'x.tsv'}", dense).score(dense).parts[:20].tolist() == [1.0] * 15 + [0.0] * 5
    write_table(tmp_path / "x.tsv", ["label", "text"], [["news", t] for t in texts] + [["sport", t] for t in texts])
    assert one(f"classify:{tmp_path / 'x.tsv'}", dense).metric == "accuracy of a linear probe"


def test_a_probe_finds_what_is_linear_and_nothing_in_noise() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    centers = rng.standard_normal((3, 20))
    assert probe_hits(centers[labels] + 0.1 * rng.standard_normal((300, 20)), labels).mean() > 0.98
    assert abs(probe_hits(rng.standard_normal((300, 20)), labels).mean() - 1 / 3) < 0.1
    wide = np.hstack([centers[labels], 0.3 * rng.standard_normal((300, 100))])[:100]
    assert probe_hits(wide, labels[:100]).mean() > 0.9, "more columns than samples"
    constant = np.ones((300, 4))
    assert probe_hits(constant, labels).mean() == pytest.approx(np.bincount(labels).max() / 300, abs=0.05)
    folds = folds_of(labels)
    for fold in range(5):
        assert np.ptp([np.bincount(labels[folds == f], minlength=3) for f in range(5)], axis=0).max() <= 1
        assert (folds == fold).sum() == 60


def test_a_rotation_of_the_embedding_does_not_change_a_probe() -> None:
    rng = np.random.default_rng(1)
    labels, x = rng.integers(0, 2, 100), rng.standard_normal((100, 8))
    x[:, 0] += labels
    scaled = x * rng.uniform(0.1, 10, 8) + 3
    assert np.array_equal(probe_hits(x, labels), probe_hits(scaled, labels))


def picture(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (20, 20)) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(path.name.encode())).integers(0, 40, (size[1], size[0], 3))
    Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)).save(path)
    return path


def pictures(folder: Path) -> Path:
    for i in range(12):
        picture(folder / f"train/red/{i}.png", (200, 10, 10))
        picture(folder / f"train/blue/{i}.png", (10, 10, 200), (30, 18))
    return folder


def test_pictures_of_two_colours_are_told_apart(vit: Backend, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images")
    task = one(f"images:{folder}", vit)
    score = task.score(vit)
    assert (score.samples, score.value) == (24, 1.0)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder).as_posix())
    assert np.array_equal(one(f"images:{tmp_path / 'images.zip'}", vit).score(vit).parts, score.parts)
    (folder / "train/red/0.png").write_bytes(b"no picture")
    with pytest.raises(LowRankError, match=r"train/red/0.png cannot be read as a picture"):
        one(f"images:{folder}", vit).score(vit)


def test_pictures_are_normalised_as_the_model_says(tmp_path: Path) -> None:
    from lowrank.evaluate.tasks.pictures import Preprocessing

    tiny_transformer("vit").save_pretrained(tmp_path)
    known = {
        "do_resize": True,
        "size": {"shortest_edge": 32},
        "do_center_crop": True,
        "crop_size": {"height": 16, "width": 16},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.25, 2.0],
        "resample": 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(known))
    dense = lowrank.open_model(tmp_path)
    made = Preprocessing.of("images:x", dense)(picture(tmp_path / "x.png", (100, 150, 200), (64, 48)).read_bytes())
    from PIL import Image

    with Image.open(tmp_path / "x.png") as original:
        resized = original.resize((42, 32), Image.Resampling.BICUBIC).crop((13, 8, 29, 24))
    expected = (np.asarray(resized) / 255 - known["image_mean"]) / known["image_std"]
    assert np.allclose(made, expected.transpose(2, 0, 1), atol=1e-5)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**known, "image_std": [0, 0]}))
    with pytest.raises(LowRankError, match="image_mean and image_std"):
        Preprocessing.of("images:x", dense)


def test_fidelity_of_a_model_to_itself_is_whole(bert: Backend, gpt: Backend, tmp_path: Path) -> None:
    text = write_text(tmp_path / "x.txt")
    for dense, metric in ((bert, "explained"), (gpt, "agreement")):
        for task in read_tasks(["fidelity", f"fidelity:{text}"], dense):
            found = compare(task, task.score(dense), task.score(smaller(dense)))
            assert task.metric == metric
            assert found.dense == pytest.approx(1) and 0 < found.drop < 1
            assert found.low is not None and found.high is not None and found.low < found.drop < found.high


@pytest.fixture(scope="module")
def judges(bert: Backend, tmp_path_factory: pytest.TempPathFactory) -> Judges:
    """Of a model that knows no English: its own text, the half of each, and two in one."""
    calibration = load_calibration(bert, write_text(tmp_path_factory.mktemp("judged") / "x.txt", 100))
    assert calibration is not None
    return Judges(calibration.backend, judging_sets(calibration.backend, calibration))


def test_fidelity_is_that_of_the_worst_set_of_the_report(judges: Judges) -> None:
    (task,) = read_tasks(["fidelity"], judges.dense, judges)
    for rank in (4, 16):
        small = smaller(judges.dense, rank)
        report, found = judges.quality_of(small), task.score(small)
        assert report.sets and len(report.sets) == 3
        assert found.value == report.fidelity == min(row.fidelity for row in report.sets)
        assert found.samples == sum(row.samples for row in report.sets)
        # Of some samples it is the worst of the sets that they are from, and of their outputs.
        for number, row in enumerate(report.sets):
            assert of_worst(found.parts[found.parts[:, -1] == number]) == row.fidelity
        whole = compare(task, task.score(judges.dense), found)
        assert whole.low is not None and whole.high is not None and 0 < whole.low <= whole.high


def test_a_drop_is_seen_on_another_set_than_the_own(judges: Judges) -> None:
    own = {feed["input_ids"].tobytes() for feed in judges.sets[0].feeds}

    class OwnAlone(OneByOne):
        """The dense model on the user's data, and nothing like it elsewhere."""

        def outputs(self, feed):
            outputs = judges.dense.outputs(feed)
            same = feed["input_ids"].tobytes() in own
            return outputs if same else {name: np.zeros_like(output) for name, output in outputs.items()}

    first, *others = (worst_of(found).fidelity for _, found in judges.against(OwnAlone()))
    assert first == 1 and max(others) < 0.5
    benchmark = read_benchmark(["fidelity"], judges.dense, judges)
    assert benchmark is not None and benchmark.drop(OwnAlone()) > 0.5
    (row,) = benchmark.compare(OwnAlone())
    assert row.low is not None and row.low > 0.5


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_outputs_are_made_once_or_again_where_there_is_no_room(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense: Backend = request.getfixturevalue(name)
    feeds, runs = random_feeds(dense), list[int]()
    outputs = [smaller(dense).outputs(feed) for feed in feeds]

    class Known(OneByOne):
        def outputs(self, feed):
            return outputs[next(i for i, each in enumerate(feeds) if each is feed)]

    plain = type(dense).outputs

    def counted(self, feed):
        runs.append(len(feed["input_ids"]))
        return plain(self, feed)

    monkeypatch.setattr(type(dense), "outputs", counted)
    monkeypatch.setattr(type(dense), "outputs_of", lambda self, feeds: map(self.outputs, feeds))
    roomy, full = Judge(dense, feeds), Judge(dense, feeds, Room(0))
    before = [[found.figures for found in roomy.against(Known())] for _ in range(2)]
    assert runs.count(len(feeds[0]["input_ids"])) == len(feeds)
    assert before == [[found.figures for found in full.against(Known())] for _ in range(2)]
    assert runs.count(len(feeds[0]["input_ids"])) >= 3 * len(feeds)


def test_vectors_that_are_all_the_same_have_a_fidelity_and_no_correlation() -> None:
    torch.manual_seed(0)
    dense = lowrank.open_model(tiny_transformer("bert"))
    dense = dense.fed_with(signature_of(dense).pooled_by("mean"))
    sets = [JudgingSet("random inputs", tuple(random_feeds(dense)))]

    class Constant(OneByOne):
        """The same numbers for everything, which may be no numbers."""

        def __init__(self, number: float) -> None:
            self.number = number

        def outputs(self, feed):
            return {name: np.full_like(output, self.number) for name, output in dense.outputs(feed).items()}

    collapsed, broken = (Judges(dense, sets).quality_of(Constant(number)) for number in (1.0, np.nan))
    assert collapsed.sets and collapsed.sets[0].spearman is None and collapsed.if_finite is collapsed
    assert collapsed.fidelity is not None and 0 <= collapsed.fidelity < 0.9
    assert broken.if_finite is None and broken.sets and broken.sets[0].cosine is None


def test_a_model_that_gives_no_numbers_is_unfit_and_its_report_can_be_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = lowrank.open_model(tiny_transformer("bert"))
    name = dense.weights[0].name
    small = dense.changed({name: (np.full_like(dense.read(name), np.nan), None)})
    analysis = lowrank.analyze(tiny_transformer("bert"), settings=lowrank.Settings(calib="none"))
    feeds = tuple(random_feeds(dense))
    calibration = Calibration(feeds, feeds, feeds, dense, {"samples": 16})
    judges = Judges(dense, judging_sets(dense, calibration))
    original = Original(dense, analysis, DenseGraph(dense), judges, silent, Clock())
    report = measure(original, small, lowrank.select(analysis, 0.5), tmp_path, Measures(latency=False))
    assert report.quality is None and report.error.relative is None
    assert any("not finite on your data" in problem for problem in report.problems)
    assert "not finite" in report.unfit[0]
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("kind", ["mean", "share", "spearman"])
def test_the_interval_holds_the_truth_as_often_as_it_says(kind: str) -> None:
    """Samples of a population whose drop is known: of 60 intervals of 95 % at least 51 hold it."""
    rng = np.random.default_rng(0)

    class Known(OneByOne):
        name, metric, higher_is_better = "known", kind, True

    held = 0
    for trial in range(60):
        x = rng.standard_normal((60, 3))
        a, b = x[:, 0] + x[:, 2], x[:, 1] + 0.5 * x[:, 2]
        if kind == "mean":
            scores, truth = (Score(a + 0.3, mean), Score(b, mean)), 0.3
        elif kind == "share":
            scores, truth = (
                (
                    Score(np.stack([a + 2, np.full(60, 2.0)], 1), share),
                    Score(np.stack([b + 1, np.full(60, 2.0)], 1), share),
                ),
                0.5,
            )
        else:
            # Both correlate with the third column as the law of the bivariate normal has it.
            law = [6 / np.pi * np.arcsin(r / 2) for r in (1 / np.sqrt(2), 0.5 / np.sqrt(1.25))]
            scores, truth = (Score(np.stack([s, x[:, 2]], 1), spearman) for s in (a, b)), law[0] - law[1]
        dense, small = scores
        found = compare(Known(), dense, small, resamples=100, seed=trial)  # pyright: ignore[reportArgumentType]
        assert found.low is not None and found.high is not None
        held += found.low <= truth <= found.high
    assert held >= 51


def test_the_interval_is_seeded_and_paired() -> None:
    class Known(OneByOne):
        name, metric, higher_is_better = "known", "mean", True

    rng = np.random.default_rng(0)
    hard = rng.standard_normal(200)
    task: Any = Known()
    paired = compare(task, Score(hard), Score(hard - 0.1))
    assert paired.low == pytest.approx(0.1) and paired.high == pytest.approx(0.1)
    other = compare(task, Score(hard), Score(hard[::-1] - 0.1))
    assert other.low is not None and other.high is not None
    assert other.drop == pytest.approx(0.1) and other.low < 0 < 0.2 < other.high
    assert other == compare(task, Score(hard), Score(hard[::-1] - 0.1))
    assert other.low != compare(task, Score(hard), Score(hard[::-1] - 0.1), seed=1).low
    single = compare(task, Score.of_value(0.5), Score.of_value(0.25))
    assert (single.drop, single.low, single.high, single.samples, single.resamples) == (0.25, None, None, None, 0)


def test_a_drop_of_perplexity_is_its_relative_increase(gpt: Backend, tmp_path: Path) -> None:
    task = one(f"lm:{write_text(tmp_path / 'x.txt')}", gpt)
    small = smaller(gpt, 2)
    (row,) = Benchmark([task], gpt).compare(small)
    assert row.drop == pytest.approx(row.compressed / row.dense - 1)
    assert Benchmark([task], gpt).drop(small) == pytest.approx(row.drop)


def counted(model: Any) -> float:
    assert model.embed(["the cat", "a dog"]).shape == (2, 32)
    assert model.run(model.signature.example(1, 4)).shape == (1, 4, 32)
    return float(sum(p.numel() for p in model.module.parameters()))


def failing(model: Any) -> float:
    raise ValueError("no such thing")


def test_a_function_of_ones_own(bert: Backend) -> None:
    task = one(f"{__name__}:counted", bert)
    found = Benchmark([task], bert).compare(smaller(bert))[0]
    assert found.metric == "counted" and found.low is None
    assert found.dense == sum(p.numel() for p in bert.module.parameters()) > found.compressed
    with pytest.raises(LowRankError, match="ValueError: no such thing"):
        one(f"{__name__}:failing", bert).score(bert)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("stz:pairs.tsv", "did you mean 'sts'"),
        ("classfy:x.tsv", "did you mean 'classify'"),
        ("sts", "sts:FILE"),
        ("", "there is no such task"),
        ("nowhere.at.all:function", "No module named 'nowhere'"),
        ("json:nothing", "has no attribute 'nothing'"),
        ("sys:path", "not a function"),
        ("sts:missing.tsv", "there is no missing.tsv"),
        ("sts:model.onnx", "must be .tsv or .csv"),
        ("lm:missing.txt", "causal language models"),
        ("images:nowhere", "there is no nowhere"),
        ("retrieval:nowhere", "corpus.jsonl"),
        ("fidelity:missing.txt", "there is no missing.txt"),
        ("lm_eval:arc_easy", "causal language models"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec: str, message: str, bert: Backend) -> None:
    with pytest.raises(LowRankError) as refused:
        read_tasks([spec], bert)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"sentence1\tsentence2\n", "has no column score"),
        (b"sentence_1\tsentence2\tscore\na\tb\t1\n", "is it 'sentence_1'"),
        (b"sentence1\tsentence2\tscore\n", "has 0 pairs"),
        (b"sentence1\tsentence2\tscore\nthe\tcat\n", "row 2"),
        (b"sentence1\tsentence2\tscore\na\tdog\t1\nthe\tcat\tmuch\na\tcat\t2\n", "'much' in row 3"),
        (b"sentence1\tsentence2\tscore\n" + b"the\tcat\tnan\n" * 4, "'nan' in row 2"),
        (b"sentence1\tsentence2\tscore\n" + b"the\tcat\t1\n" * 4, "same score"),
        (b"sentence1\tsentence2\tscore\n" + b"\tcat\t1\n" * 4 + b"a\tb\t2", "no tokens of ''"),
        ("sentence1\tsentence2\tscore\nä\tb\t1".encode("latin-1"), "not UTF-8: line 2"),
        (b"PK\x03\x04\x00\x00", "binary file"),
    ],
)
def test_a_damaged_table_is_refused(content: bytes, message: str, bert: Backend, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_bytes(content)
    with pytest.raises(LowRankError) as refused:
        one(f"sts:{tmp_path / 'pairs.tsv'}", bert)
    assert message in str(refused.value)


def test_a_bomb_is_refused(bert: Backend, vit: Backend, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv.gz").write_bytes(gzip.compress(b"a" * (80 << 20)))
    with pytest.raises(LowRankError, match="holds more than"):
        one(f"sts:{tmp_path / 'pairs.tsv.gz'}", bert)
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.png", bytes(80 << 20))
    with pytest.raises(LowRankError, match="too many for a file"):
        one(f"images:{tmp_path / 'images.zip'}", vit)
    # A picture that is all of one colour is small in a file, and large in memory.
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    folder = pictures(tmp_path / "images")
    (folder / "train/red/0.png").write_bytes(bomb)
    with pytest.raises(LowRankError, match="decompression bomb"):
        one(f"images:{folder}", vit).score(vit)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", "{", "line 1, is not JSON"),
        ("corpus.jsonl", "[1]", "must be an object"),
        ("corpus.jsonl", '{"_id": 3, "text": "a"}', "must be an object"),
        ("corpus.jsonl", "[" * 100000, "nested too deeply"),
        ("queries.jsonl", '{"_id": "q0", "text": "the"}', "names query 'q1' in row 3"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\td0\tmuch", "'much' in row 2"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\td0\t0", "no document that is right"),
        ("qrels/test.tsv", "query\tcorpus-id\tscore\nq0\td0\t1", "no column query-id"),
    ],
)
def test_a_damaged_folder_is_refused(file: str, content: str, message: str, bert: Backend, tmp_path: Path) -> None:
    (beir(tmp_path / "beir") / file).write_text(content)
    with pytest.raises(LowRankError) as refused:
        one(f"retrieval:{tmp_path / 'beir'}", bert)
    assert message in str(refused.value)


def test_a_task_is_for_some_models_only(bert: Backend, gpt: Backend, vit: Backend, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.tsv")
    rows = [[i % 2, text] for i, text in enumerate(sentences(20))]
    labelled = write_table(tmp_path / "x.tsv", ["label", "sentence"], rows)
    text = write_text(tmp_path / "x.txt")
    for spec, dense, message in [
        (f"sts:{pairs}", gpt, "scores of tokens"),
        (f"sts:{pairs}", vit, "reads pixel_values, not text"),
        (f"classify:{labelled}", gpt, "not of classes"),
        (f"lm:{text}", bert, "causal language models"),
        (f"images:{pictures(tmp_path / 'images')}", bert, "not pictures"),
    ]:
        with pytest.raises(LowRankError, match=message):
            one(spec, dense)
    import transformers as t

    t.BertForMaskedLM(tiny_config()).save_pretrained(tmp_path / "masked")
    write_tokenizer(tmp_path / "masked")
    with pytest.raises(LowRankError, match="masked language models"):
        one(f"lm:{text}", lowrank.open_model(tmp_path / "masked"))


def test_labels_must_be_enough(bert: Backend, tmp_path: Path) -> None:
    for labels, message in ([["a"] * 20, "have the label 'a'"], [["a"] * 19 + ["b"], "'b' has 1 of 20"]):
        rows = [[label, text] for label, text in zip(labels, sentences(20), strict=True)]
        write_table(tmp_path / "x.tsv", ["label", "sentence"], rows)
        with pytest.raises(LowRankError, match=message):
            one(f"classify:{tmp_path / 'x.tsv'}", bert)
