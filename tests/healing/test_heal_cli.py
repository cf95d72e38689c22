"""`lowrank heal` and `compress --heal`: files, reports, refusals; the example that trains with labels."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import launched_together, sentences, write_text
from conftest import Outcome

import lowrank
from lowrank.pipeline import Training

pytestmark = pytest.mark.slow

Cli = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, bert_folder: Path) -> Path:
    """A compressed BERT. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("finished")
    settings = lowrank.Settings(calib=str(write_text(folder / "text.txt", 80)))
    lowrank.compress(str(bert_folder), 0.3, output=folder / "run", settings=settings, latency=False)
    return folder / "run"


@pytest.fixture
def run(here: Path, finished: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, here / "run")


def test_heal_makes_the_run_better_again_and_again(cli: Cli, run: Path) -> None:
    before = read(run / "report.json")
    first = cli("heal", run, "--steps", 40, "--no-latency")
    assert first.code == 0, first.err
    once = read(run / "report.json")
    # Of each output: which of them is the worst may change.
    pairs = zip(once["quality"]["sets"][0]["outputs"], before["quality"]["sets"][0]["outputs"], strict=True)
    assert all(ours["relative_error"] < theirs["relative_error"] for ours, theirs in pairs)
    assert once["targets"] == before["targets"] and once["parity"] is not None
    (entry,) = once["healing"]
    assert entry["after"] < entry["before"] and entry["kept"] and entry["steps"] > 0 and entry["rate"] > 0
    assert "held-out loss" in first.out and f"{entry['after'] / entry['before']:.3f}" in first.out
    assert not (run / "healing.safetensors").exists()
    again = cli("heal", run, "--steps", 40, "--seed", 1, "--no-latency", "--json")
    assert again.code == 0, again.err
    assert [each["seed"] for each in json.loads(again.out)["healing"]] == [0, 1]
    evaluated = cli("evaluate", "-o", run)
    assert evaluated.code == 0, evaluated.err
    assert len(read(run / "report.json")["healing"]) == 2


def test_compress_with_heal_and_other_data(cli: Cli, here: Path, bert_folder: Path) -> None:
    text = write_text(here / "text.txt", 80)
    done = cli("compress", bert_folder, "--budget", 0.3, "--calib", text, "--heal", 0.05, "--no-latency", "-o", "run")
    assert done.code == 0, done.err
    (entry,) = read(here / "run" / "report.json")["healing"]
    assert entry["minutes"] == 0.05 and entry["curve"]
    (here / "other.txt").write_text("\n".join(sentences(60, seed=9)), encoding="utf-8")
    other = cli("heal", "run", "--steps", 20, "--calib", "other.txt", "--no-latency")
    assert other.code == 0, other.err
    assert read(here / "run" / "report.json")["healing"][1]["data"]["text"].endswith("other.txt")


def test_an_interrupted_run_is_resumed(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank.healing.phases import Healing

    whole, model = Healing._judge, (run / "model" / "model.safetensors").read_bytes()
    count = 0

    def stop(self: Healing, *rest: Any) -> bool:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return whole(self, *rest)

    monkeypatch.setattr(Healing, "_judge", stop)
    broken = cli("heal", run, "--steps", 60, "--no-latency")
    assert broken.code == 130 and "--resume" in broken.err
    assert (run / "model" / "model.safetensors").read_bytes() == model
    monkeypatch.setattr(Healing, "_judge", whole)
    assert "other options" in cli("heal", run, "--steps", 50, "--resume").err
    resumed = cli("heal", run, "--steps", 60, "--no-latency", "--resume")
    assert resumed.code == 0, resumed.err
    assert (run / "model" / "model.safetensors").read_bytes() != model


@pytest.mark.parametrize("fold", ["no", "exact", "rank"])
def test_adapters_from_the_command_line(cli: Cli, run: Path, fold: str) -> None:
    pytest.importorskip("peft")
    again = cli("compress", "--budget", 0.4, "--structures", "two_factor,pivoted", "--no-latency", "-o", run)
    assert again.code == 0, again.err
    before = read(run / "report.json")
    model = (run / "model" / "model.safetensors").read_bytes()
    done = cli("heal", run, "--steps", 80, "--adapter", 2, "--fold", fold, "--no-latency")
    assert done.code == 0, done.err
    after = read(run / "report.json")
    assert after["healing"][0]["adapter"] == 2
    if fold == "no":
        assert (run / "model" / "model.safetensors").read_bytes() == model
        assert {p.name for p in run.iterdir()} >= {"adapter", "adapter.onnx_adapter", "model_with_adapters.onnx"}
        assert after["files"]["adapter.onnx_adapter"] > 0
        return
    assert after["quality"]["relative_error"] < before["quality"]["relative_error"]
    grown = after["targets"]["params_after"] > before["targets"]["params_after"]
    assert grown == (fold == "exact")
    assert after["model"]["params_after"] == sum(p.numel() for p in lowrank.load(run).parameters())  # type: ignore[union-attr]
    assert cli("evaluate", "-o", run).code == 0


@pytest.mark.parametrize("fold", ["exact", "rank"])
def test_a_fold_that_is_worse_is_discarded(run: Path, fold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.setattr("lowrank.healing.distill.Distillation.judge_other", lambda *_: 1e9)
    before = [(run / name).read_bytes() for name in ("model/model.safetensors", "model.onnx", "plan.json")]
    report = lowrank.heal(run, lowrank.Training(steps=30, adapter=2, fold=fold), latency=False)
    entry = report.healing[-1]
    assert not entry.kept and entry.unfolded < entry.before < entry.after
    assert [(run / name).read_bytes() for name in ("model/model.safetensors", "model.onnx", "plan.json")] == before
    assert read(run / "report.json")["healing"] == json.loads(json.dumps(report.to_json()["healing"]))


def lora(folder: Path, bert_folder: Path, **options: Any) -> Path:
    """A LoRA that PEFT made for the dense model."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        **{"r": 2, "lora_alpha": 8, "target_modules": ["query", "value"], "init_lora_weights": False} | options
    )
    dense: Any = lowrank.open_model(str(bert_folder))
    peft.get_peft_model(dense.module, config).save_pretrained(str(folder))
    return folder


def test_a_kept_lora_outlives_healing(cli: Cli, here: Path, bert_folder: Path) -> None:
    text, folder = write_text(here / "text.txt", 80), lora(here / "lora", bert_folder)
    options = ("--budget", 0.5, "--calib", text, "--lora", folder, "--keep-lora", "--no-latency", "-o", "run")
    done = cli("compress", bert_folder, *options)
    assert done.code == 0, done.err
    saved = (here / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    graphs = [(here / "run" / "model_with_adapters.onnx").read_bytes()]
    healed = cli("heal", "run", "--steps", 80, "--no-latency")
    assert healed.code == 0, healed.err
    assert read(here / "run" / "report.json")["healing"][-1]["kept"]
    graphs.append((here / "run" / "model_with_adapters.onnx").read_bytes())
    assert graphs[0] != graphs[1], "the graph has the healed factors"
    assert (here / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == saved
    refused = cli("heal", "run", "--steps", 40, "--adapter", 2, "--no-latency")
    assert refused.code == 1 and "is the LoRA that was kept" in refused.err
    refused = cli("compress", bert_folder, *options, "--heal", 0.05, "--adapter", 2)
    assert refused.code == 1 and "exclude each other" in refused.err


def test_a_lora_that_is_more_than_residuals_is_merged_alone(cli: Cli, here: Path, bert_folder: Path) -> None:
    folder = lora(here / "lora", bert_folder, use_dora=True)
    options = ("--budget", 0.5, "--calib", write_text(here / "text.txt", 80), "--no-latency", "-o", "run")
    refused = cli("compress", bert_folder, *options, "--lora", folder, "--keep-lora")
    assert refused.code == 1 and "merge it" in refused.err and not (here / "run" / "model").exists()
    assert cli("compress", bert_folder, *options, "--lora", folder).code == 0


def test_a_trained_adapter_is_not_lost_by_healing(cli: Cli, run: Path) -> None:
    pytest.importorskip("peft")
    assert cli("heal", run, "--steps", 30, "--adapter", 2, "--no-latency").code == 0
    saved = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    for more in ((), ("--adapter", 2, "--fold", "exact")):
        refused = cli("heal", run, "--steps", 30, *more, "--no-latency")
        assert refused.code == 1 and "fits the current model alone" in refused.err
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == saved
    assert cli("heal", run, "--steps", 40, "--adapter", 2, "--no-latency").code == 0


def test_an_adapter_outlives_a_graph_that_fails(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.setattr("lowrank.edge.adapters.TOLERANCE", -1.0)
    done = cli("heal", run, "--steps", 30, "--adapter", 2, "--no-latency")
    assert done.code == 1 and "differs by" in done.err
    names = {path.name for path in run.iterdir()}
    assert "adapter" in names and not names & {"adapter.onnx_adapter", "model_with_adapters.onnx"}


def test_refusals(cli: Cli, run: Path, here: Path, bert_folder: Path) -> None:
    (here / "short.txt").write_text("the cat\na dog\n", encoding="utf-8")
    for arguments, message in (
        (["--calib", "short.txt"], "too few"),
        (["--calib", "none"], "learns from data"),
        (["--device", "cuda:99"], "no device"),
        (["--resume"], "leave out --resume"),
        (["--minutes", "inf"], "minutes were given for healing"),
    ):
        refused = cli("heal", run, "--steps", 20, *arguments)
        assert refused.code == 1 and message in refused.err, refused.err
    assert cli("heal", run, "--fold", "exact").code == 2
    assert cli("compress", bert_folder, "--budget", 0.5, "--adapter", 2).code == 2
    plan = read(run / "plan.json")
    entry = next(e for e in plan["groups"] if e["structure"] != "dense")
    entry["rank"] -= 1
    (run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    refused = cli("heal", run, "--steps", 20)
    assert refused.code == 1 and "is not the plan" in refused.err


def test_a_module_in_memory(here: Path) -> None:
    from builders import trained_blocks

    module = trained_blocks()
    np.savez(here / "x.npz", x=np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32))
    settings = lowrank.Settings(calib="x.npz")
    plain = lowrank.compress(module, 0.4, output="run", settings=settings, latency=False)
    healed = lowrank.compress(
        module, 0.4, output="run", settings=settings, latency=False, heal=Training(minutes=1, steps=60)
    )
    assert plain.quality is not None and healed.quality is not None
    assert healed.quality.relative_error < plain.quality.relative_error


@pytest.mark.slow
def test_processes_that_accelerate_starts_give_the_same_model(here: Path, run: Path) -> None:
    pytest.importorskip("accelerate")
    import shutil

    shutil.copytree(run, here / "alone")
    command = ["-m", "lowrank", "heal", "--steps", "20", "--no-latency"]
    for start, folder in (([], "alone"), (launched_together(), "run")):
        done = subprocess.run(
            [sys.executable, *start, *command, str(here / folder)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (dict(lowrank.load(here / name).named_parameters()) for name in ("alone", "run"))  # type: ignore[union-attr]
    for name, parameter in one.items():
        torch.testing.assert_close(two[name], parameter, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_the_example_trains_with_labels(run: Path, here: Path) -> None:
    lines = sentences(400)
    for name, part in (("train.tsv", lines[:300]), ("test.tsv", lines[300:])):
        rows = [f"{int('cat' in line.split())}\t{line}" for line in part]
        (here / name).write_text("\n".join(["label\tsentence", *rows]) + "\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "examples" / "fine_tune.py"), str(run), "--train", "train.tsv"]
    command += ["--test", "test.tsv", "--steps", "150", "--rate", "3e-3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    head, whole = (float(line.split()[-1].rstrip("%")) for line in done.stdout.splitlines())
    assert whole > head and whole > 80
