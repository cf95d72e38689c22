"""mteb and lm_eval, the real packages, on data that is here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import sentences, shape_spectra_, tiny_config, write_tokenizer

import lowrank
from lowrank.errors import LowRankError
from lowrank.evaluate.tasks.inputs import Texts
from lowrank.evaluate.tasks.specs import read_tasks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import transformers as t

    folder = tmp_path_factory.mktemp("gpt")
    torch.manual_seed(0)
    config = tiny_config("gpt2", bos_token_id=2, eos_token_id=3)
    shape_spectra_(t.GPT2LMHeadModel(config).eval()).save_pretrained(folder)
    write_tokenizer(folder)
    return lowrank.open_model(folder)


def test_mteb_gives_what_we_give(bert_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mteb")
    from datasets import Dataset
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    from lowrank.evaluate.tasks.with_mteb import MtebTask

    class Local(AbsTaskSTS):
        metadata = TaskMetadata(
            name="Local",
            description="pairs",
            reference=None,
            dataset={"path": "local/none", "revision": "1"},
            type="STS",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )

    first, second = sentences(30, 1), sentences(30, 2)
    scores = [float(i % 6) for i in range(30)]
    pairs = [f"{a} {b}" for a, b in zip(first, second, strict=True)]
    task = Local()
    task.dataset = {"test": Dataset.from_dict({"sentence1": pairs, "sentence2": second, "score": scores})}
    task.data_loaded = True
    dense = lowrank.open_model(bert_folder)
    rows = [f"{a}\t{b}\t{s}" for a, b, s in zip(pairs, second, scores, strict=True)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    (ours,) = read_tasks([f"sts:{tmp_path / 'pairs.tsv'}"], dense)
    theirs = MtebTask("mteb:Local", Texts.of("mteb:Local", dense), task)
    assert theirs.metric == "cosine_spearman"
    assert theirs.score(dense).value == pytest.approx(ours.score(dense).value, abs=1e-4)
    with pytest.raises(LowRankError, match="Did you mean"):
        read_tasks(["mteb:STSBenchmrk"], dense)


def local_task(folder: Path, kind: str) -> Path:
    """A task of the harness over a file of JSON lines."""
    texts = sentences(12)
    if kind == "multiple_choice":
        entries = [{"query": text, "choices": ["cat", "dog sat"], "gold": i % 2} for i, text in enumerate(texts)]
        rest = 'doc_to_text: "{{query}}"\ndoc_to_choice: choices\ndoc_to_target: gold\n'
        metric = "acc"
    else:
        entries = [{"text": " ".join(texts)}, {"text": texts[1]}]
        rest = 'doc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        metric = "word_perplexity"
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, entries)))
    path = folder / "local.yaml"
    path.write_text(
        f"task: local_{kind}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / 'data.jsonl'}\n"
        f"test_split: test\noutput_type: {kind}\n{rest}metric_list:\n  - metric: {metric}\n"
    )
    return path


def logits_of(gpt: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(gpt.module(input_ids=torch.tensor([ids])).logits[0], -1)


def ids_of(gpt: Any, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gpt.tokenizer)(text)["input_ids"]


def test_multiple_choice_in_lm_eval(gpt: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    path = local_task(tmp_path, "multiple_choice")
    (task,) = read_tasks([f"lm_eval:{path}"], gpt)
    score = task.score(gpt)
    assert (task.metric, task.higher_is_better, score.samples) == ("acc", True, 12)
    hits = []
    for line in (tmp_path / "data.jsonl").read_text().splitlines():
        entry = json.loads(line)
        told = []
        for choice in entry["choices"]:
            context, whole = ids_of(gpt, entry["query"]), ids_of(gpt, f"{entry['query']} {choice}")
            found = logits_of(gpt, whole)
            told.append(sum(float(found[i - 1, whole[i]]) for i in range(len(context), len(whole))))
        hits.append(float(int(np.argmax(told)) == entry["gold"]))
    assert score.parts.tolist() == hits
    # The same task a second time, as it is asked of the compressed model.
    assert task.score(gpt).parts.tolist() == hits


def test_rolling_perplexity_in_lm_eval(gpt: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    path = local_task(tmp_path, "loglikelihood_rolling")
    (task,) = read_tasks([f"lm_eval:{path}"], gpt)
    assert (task.metric, task.higher_is_better) == ("word_perplexity", False)
    total, words = 0.0, 0
    for line in (tmp_path / "data.jsonl").read_text().splitlines():
        text = json.loads(line)["text"]
        ids, done = ids_of(gpt, text), 0
        while done < len(ids):
            # Windows of 63 that foresee 63 tokens; the last one looks back as far as it can.
            end = min(done + 63, len(ids))
            window = [2, *ids][max(0, end - 63) : end + 1]
            found = logits_of(gpt, window)
            total += sum(float(found[i - 1, window[i]]) for i in range(len(window) - (end - done), len(window)))
            done = end
        words += len(text.split())
    assert task.score(gpt).value == pytest.approx(math.exp(-total / words), rel=1e-4)


def test_what_lm_eval_has_not(gpt: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(LowRankError, match="lm_eval failed"):
        read_tasks(["lm_eval:no_such_task"], gpt)
