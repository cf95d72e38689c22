"""The command line: the two commands that one has to type, every option, every refusal, and what they leave behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from builders import Blocks, read, saved_state, tiny_transformer, trained_blocks, write_text
from conftest import Outcome

import lowrank
from lowrank.artifacts.journal import PROGRESS_FOLDER

Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files of a run. What one that failed has learnt is kept beside them, for --resume."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(PROGRESS_FOLDER)}


def test_the_two_commands_that_a_user_types_first(cli: Cli, here: Path) -> None:
    saved_state(here / "model.pt")
    first = cli("analyze", "model.pt")
    assert first.code == 0, first.err
    assert "layers.0.up" in first.out and "two factors need" in first.out
    second = cli("compress", "--budget", "0.3")
    assert second.code == 0, second.err
    assert "keep ratio" in second.out
    run = here / "lowrank-run"
    assert {p.name for p in run.iterdir()} == {
        "analysis.json",
        "analysis.safetensors",
        "plan.json",
        "report.json",
        "report.html",
        "model",
    }
    report = read(run / "report.json")
    assert report["targets"]["keep_ratio"] <= 0.3
    assert report["budget"]["reached"] <= report["budget"]["limit"] == 0.3
    module = lowrank.load(run, arch=Blocks)
    assert sum(p.numel() for p in module.parameters()) == report["model"]["params_after"]


def test_a_state_dict_with_arch_becomes_onnx(cli: Cli, here: Path) -> None:
    saved_state(here / "model.pt")
    assert cli("analyze", "model.pt", "--arch", "builders:build_blocks").code == 0
    done = cli("compress", "--budget", "0.5", "--no-latency")
    assert done.code == 0, done.err
    module = lowrank.load("lowrank-run", arch=Blocks)
    x = torch.randn(2, 7, 16)
    (theirs,) = ort.InferenceSession("lowrank-run/model.onnx").run(None, {"x": x.numpy()})
    with torch.no_grad():
        assert np.allclose(module(x).numpy(), theirs, atol=1e-5)


def test_huggingface_folder_end_to_end(cli: Cli, here: Path, bert_folder: Path) -> None:
    write_text(here / "text.txt")
    done = cli("compress", bert_folder, "--budget", "0.5", "-o", "run", "--calib", "text.txt", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    content = read(here / "run/report.json")
    assert content.pop("schema") == "lowrank.report/1.0"
    assert content == report
    assert report["targets"]["keep_ratio"] <= 0.5
    assert report["parity"]["max_abs"] < 1e-4 and len(report["parity"]["cases"]) >= 3
    assert set(report["latency"]) >= {"dense_ms", "compressed_ms", "speedup", "threads", "shapes"}
    assert 0 <= report["quality"]["fidelity"] <= 1 + 1e-6
    assert set(report["error"]["per_weight"]) == {w["name"] for w in read(here / "run/analysis.json")["weights"]}
    assert {s["name"] for s in report["skipped"]} >= {
        "embeddings.word_embeddings.weight",
        "pooler.dense.weight",
    }
    assert report["provenance"]["versions"]["lowrank"] == lowrank.__version__
    assert report["model"]["params_after"] == sum(p.numel() for p in lowrank.load("run").parameters())
    assert not [p for p in (here / "run").iterdir() if p.name.startswith(".")]

    again = cli("evaluate", "-o", "run", "--json")
    assert again.code == 0, again.err
    measured = json.loads(again.out)
    assert measured["quality"] == report["quality"] and measured["budget"] == report["budget"]

    smaller = cli("compress", "--budget", "0.3", "-o", "run", "--no-latency")
    assert smaller.code == 0, smaller.err
    assert "calibrating" not in smaller.err, "the analysis is kept, not made again"
    assert read(here / "run/report.json")["targets"]["keep_ratio"] <= 0.3


def test_analyze_json_holds_every_figure(cli: Cli, here: Path, bert_folder: Path) -> None:
    write_text(here / "text.txt")
    done = cli("analyze", bert_folder, "--calib", "text.txt", "--json")
    assert done.code == 0, done.err
    content = json.loads(done.out)
    weight = content["weights"][0]
    assert weight["name"] == "encoder.layer.0.attention.self.query.weight"
    assert (weight["shape"], weight["dtype"], weight["params"], weight["break_even_rank"]) == (
        [32, 32],
        "float32",
        1024,
        15,
    )
    for metric in ("plain", "activation"):
        figures = weight[metric]
        assert len(figures["singular_values"]) == 32
        assert 1 <= figures["stable_rank"] <= figures["effective_rank"] <= 32 + 1e-9
        assert set(figures["rank_at_energy"]) == {"0.90", "0.95", "0.99"}
        assert 0 < figures["error_at_break_even"] < 1
    assert content["verdict"] and content["skipped"]


def test_english_is_for_models_that_read_it(cli: Cli, here: Path, bert_folder: Path) -> None:
    refused = cli("analyze", bert_folder)
    assert refused.code == 1 and "does not read English" in refused.err and "--calib FILE" in refused.err
    assert cli("analyze", bert_folder, "--calib", write_text(here / "text.txt")).code == 0
    notes = read(here / "lowrank-run/analysis.json")["notes"]
    assert "no built-in text is mixed with yours" in notes[0]
    assert cli("analyze", bert_folder, "--calib", "text.txt", "--calib-only").code == 0
    content = read(here / "lowrank-run/analysis.json")
    assert content["settings"]["mixed"] is False and not any("built-in" in note for note in content["notes"])
    for flags in (("compress", "--budget", "0.5", "--calib", "none"), ("analyze", bert_folder)):
        refused = cli(*flags, "--calib-only")
        assert refused.code == 2 and "--calib-only is for text of your own" in refused.err
    assert cli("analyze", bert_folder, "--calib", "none").code == 0
    assert "plain metric" in read(here / "lowrank-run/analysis.json")["notes"][0]


def test_plan_can_be_edited_and_given_back(cli: Cli, here: Path) -> None:
    saved_state(here / "model.pt")
    cli("analyze", "model.pt")
    assert cli("select", "--budget", "0.5").code == 0
    plan = read(here / "lowrank-run/plan.json")
    plan["groups"][0] |= {"structure": "two_factor", "rank": 5}
    (here / "mine.json").write_text(json.dumps(plan))
    done = cli("compress", "--plan", "mine.json")
    assert done.code == 0, done.err
    assert lowrank.load("lowrank-run")["layers.0.up.left.weight"].shape == (40, 5)
    before = snapshot(here / "lowrank-run")
    over = cli("compress", "--plan", "mine.json", "--budget", "0.1")
    assert (over.code, "above its budget" in over.err) == (1, True)
    (here / "mine.json").write_text("{")
    assert cli("compress", "--plan", "mine.json").code == 1
    assert snapshot(here / "lowrank-run") == before


def test_selectors_and_multiples(cli: Cli, here: Path) -> None:
    saved_state(here / "model.pt")
    for name in ("knapsack", "uniform", "energy", "relative-error"):
        done = cli("compress", "model.pt", "--budget", "0.5", "--selector", name, "--multiple", "2")
        assert done.code == 0, done.err
        plan = read(here / "lowrank-run/plan.json")
        assert plan["selector"] == {"type": name, "multiple": 2}
        assert all(g["rank"] % 2 == 0 for g in plan["groups"] if g["structure"] == "two_factor")
    done = cli("compress", "model.pt", "--error", "0.2")
    assert done.code == 0, done.err
    assert max(read(here / "lowrank-run/report.json")["error"]["per_weight"].values()) <= 0.2


def test_include_exclude_and_targets(cli: Cli, here: Path) -> None:
    saved_state(here / "model.pt")
    cli("analyze", "model.pt", "--include", "up", "--exclude", "layers.1")
    assert [w["name"] for w in read(here / "lowrank-run/analysis.json")["weights"]] == ["layers.0.up.weight"]
    cli("analyze", "model.pt", "--targets", "all")
    assert len(read(here / "lowrank-run/analysis.json")["weights"]) == 5
    wrong = cli("analyze", "model.pt", "--include", "upp")
    assert (wrong.code, "did you mean 'up'" in wrong.err) == (1, True)
    wrong = cli("analyze", "model.pt", "--targets", "attention")
    assert (wrong.code, "embeddings, conv, all" in wrong.err) == (1, True)
    wrong = cli("analyze", "model.pt", "--targets", "conv")
    assert (wrong.code, "has no weight that is targeted" in wrong.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0"], "above 0 and at most 1"),
        (["--budget", "1.5"], "above 0 and at most 1"),
        (["--budget", "-1"], "above 0 and at most 1"),
        (["--budget", "nan"], "above 0 and at most 1"),
        (["--budget", "0.001"], "smallest budget that can be met is"),
        (["--error", "1"], "relative output error"),
        (["--budget", "0.5", "--include", "nowhere"], "selects no weight"),
        (["--budget", "0.5", "--calib", "missing.txt"], "missing.txt"),
        (["--budget", "0.5", "--plan", "missing.json"], "missing.json"),
    ],
)
def test_refusals_leave_everything_as_it_was(
    cli: Cli, here: Path, shared_state_run: Path, arguments: list[str], message: str
) -> None:
    shutil.copytree(shared_state_run, here / "lowrank-run")
    before = snapshot(here / "lowrank-run")
    refused = cli("compress", *arguments)
    assert refused.code == 1
    assert message in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    assert snapshot(here / "lowrank-run") == before


def test_the_smallest_budget_that_is_named_works(cli: Cli, here: Path) -> None:
    saved_state(here / "model.pt")
    refused = cli("compress", "model.pt", "--budget", "0.001")
    assert cli("compress", "--budget", refused.err.strip().rsplit(" ", 1)[1]).code == 0


def test_usage_errors_exit_with_two(cli: Cli, here: Path) -> None:
    assert cli("compress").code == 2
    assert cli("compress", "--budget", "0.5", "--error", "0.1").code == 2
    assert cli("analyze").code == 2
    assert cli("unheard-of").code == 2


def test_nothing_to_start_from(cli: Cli) -> None:
    refused = cli("compress", "--budget", "0.3")
    assert (refused.code, "lowrank analyze MODEL" in refused.err) == (1, True)
    refused = cli("analyze", "missing.pt")
    assert (refused.code, "missing.pt" in refused.err) == (1, True)
    assert not Path("lowrank-run").exists()


def test_a_model_that_changed_is_noticed(cli: Cli, here: Path) -> None:
    saved_state(here / "model.pt")
    cli("analyze", "model.pt")
    known = read(here / "lowrank-run/analysis.json")["source"]["fingerprint"]
    torch.save(Blocks().state_dict(), here / "model.pt")
    refused = cli("compress", "--budget", "0.3")
    assert (refused.code, "has changed since" in refused.err, known in refused.err) == (1, True, True)
    assert cli("analyze", "model.pt").code == 0
    assert cli("compress", "--budget", "0.3").code == 0


@pytest.mark.slow
def test_pickled_modules(cli: Cli, here: Path) -> None:
    torch.save(trained_blocks(), here / "model.pt")
    refused = cli("analyze", "model.pt")
    assert (refused.code, "--unsafe-pickle" in refused.err) == (1, True)
    assert cli("analyze", "model.pt", "--unsafe-pickle").code == 0
    assert cli("compress", "--budget", "0.3").code == 1, "the permission is not remembered"
    done = cli("compress", "--budget", "0.3", "--unsafe-pickle", "--no-latency")
    assert done.code == 0, done.err
    assert Path("lowrank-run/model.onnx").exists()


@pytest.mark.slow
def test_exported_program_end_to_end(cli: Cli, here: Path) -> None:
    shape = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(trained_blocks(), (torch.randn(2, 5, 16),), dynamic_shapes=(shape,))
    torch.export.save(program, here / "model.pt2")
    done = cli("compress", "model.pt2", "--budget", "0.5", "--no-latency")
    assert done.code == 0, done.err
    x = torch.randn(3, 4, 16)
    (theirs,) = ort.InferenceSession("lowrank-run/model.onnx").run(None, {"x": x.numpy()})
    with torch.no_grad():
        assert np.allclose(lowrank.load("lowrank-run")(x).numpy(), theirs, atol=1e-5)


@pytest.mark.slow
def test_an_exported_program_is_healed_again_and_again(cli: Cli, here: Path) -> None:
    shape = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(trained_blocks(), (torch.randn(2, 5, 16),), dynamic_shapes=(shape,))
    torch.export.save(program, here / "model.pt2")
    np.savez(here / "inputs.npz", x=np.random.default_rng(0).standard_normal((64, 5, 16)).astype(np.float32))
    options = ("--budget", "0.4", "--structures", "two_factor", "--calib", "inputs.npz", "--no-latency")
    assert cli("compress", "model.pt2", *options).code == 0
    losses: list[float] = []

    def numbers() -> dict[str, torch.Tensor]:
        return {name.replace("module.", ""): p for name, p in lowrank.load("lowrank-run").named_parameters()}

    weights = [numbers()]
    for _ in range(2):
        done = cli("heal", "lowrank-run", "--steps", "60", "--no-latency", "--json")
        assert done.code == 0, done.err
        entry = json.loads(done.out)["healing"][-1]
        losses += [entry["before"], entry["after"]]
        weights.append(numbers())
    assert losses == sorted(losses, reverse=True) and losses[1] < 0.9 * losses[0]
    name = next(name for name in weights[0] if name.endswith("left.weight"))
    assert not torch.equal(weights[1][name], weights[0][name]) and not torch.equal(weights[2][name], weights[1][name])
    refused = cli("heal", "lowrank-run", "--steps", "60", "--adapter", "2", "--no-latency")
    assert refused.code == 1 and "exported program" in refused.err


def test_export_of_the_dense_model(cli: Cli, here: Path, bert_folder: Path) -> None:
    done = cli("export", bert_folder, "-o", "dense")
    assert done.code == 0, done.err
    session = ort.InferenceSession("dense/model.onnx")
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    saved_state(here / "model.pt")
    assert cli("export", "model.pt", "-o", "dense").code == 1


def test_calibration_with_npz_gives_a_module_data(cli: Cli, here: Path) -> None:
    saved_state(here / "model.pt")
    rng = np.random.default_rng(0)
    np.savez(here / "x.npz", x=rng.standard_normal((50, 6, 16)).astype(np.float32))
    done = cli("analyze", "model.pt", "--arch", "builders:build_blocks", "--calib", "x.npz")
    assert done.code == 0, done.err
    assert read(here / "lowrank-run/analysis.json")["weights"][0]["metric"] == "activation"


def test_half_written_files_never_replace_whole_ones(
    cli: Cli, here: Path, shared_state_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at any of the writes: one sentence, and the earlier result is what it was."""
    shutil.copytree(shared_state_run, here / "lowrank-run")
    before = snapshot(here / "lowrank-run")
    import lowrank.artifacts.files as files

    real, calls = os.replace, 0
    for failing in range(1, 9):
        calls = 0

        def full(source: object, target: object, failing: int = failing) -> None:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(28, "No space left on device")
            real(source, target)  # type: ignore[arg-type]

        monkeypatch.setattr(files.os, "replace", full)
        done = cli("compress", "--budget", "0.4")
        monkeypatch.setattr(files.os, "replace", real)
        if calls < failing:
            break
        assert (done.code, "No space left" in done.err) == (1, True), failing
        after = snapshot(here / "lowrank-run")
        for name in ("plan.json", "report.json", "model/model.safetensors", "model/lowrank.json"):
            assert after[name] == before[name], (failing, name)
    else:
        assert calls >= 8


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file size limit")
@pytest.mark.slow
def test_a_file_size_limit_costs_nobody_a_file(here: Path) -> None:
    """The operating system refuses to write past a limit, in the middle of a file, in a process of its own."""
    saved_state(here / "model.pt")
    command = [sys.executable, "-m", "lowrank"]
    subprocess.run([*command, "compress", "model.pt", "--budget", "0.5"], check=True, capture_output=True)
    before = snapshot(here / "lowrank-run")
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); from lowrank.cli.app import main; "
        "sys.argv = ['lowrank', 'compress', '--budget', '0.4']; main()"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "cannot write" in done.stderr
    assert snapshot(here / "lowrank-run") == before


@pytest.mark.slow
def test_interruption_leaves_the_earlier_result(here: Path, bert_folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lowrank",
        "compress",
        str(bert_folder),
        "--calib",
        "none",
        "--no-latency",
    ]
    subprocess.run([*command, "--budget", "0.5"], check=True, capture_output=True)
    before = snapshot(here / "lowrank-run")
    process = subprocess.Popen([*command, "--budget", "0.4"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((here / "lowrank-run").glob(".lowrank-staging-*/model")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err
    assert snapshot(here / "lowrank-run") == before


def test_an_interruption_that_other_code_swallows_counts(here: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from lowrank.artifacts.files import staged\n"
        "from lowrank.interrupts import remember_interrupts\n"
        "class Swallows:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT); list(range(1000))\n"
        "remember_interrupts()\n"
        "with staged(Path('run')) as stage:\n"
        "    (stage / 'new').write_text('x'); Swallows()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "Exception ignored" in done.stderr and not (here / "run" / "new").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("analyze", "model.pt", "-o", "file"),
        ("compress", "model.pt", "--budget", "0.5", "-o", "file/inside"),
        ("select", "-o", "file", "--budget", "0.5"),
        ("evaluate", "-o", "file"),
        ("heal", "file"),
        ("truncate", "file", "--budget", "0.2"),
    ],
)
def test_a_run_that_is_a_file(cli: Cli, here: Path, words: tuple[str, ...]) -> None:
    saved_state(here / "model.pt")
    (here / "file").write_text("precious")
    done = cli(*words)
    assert (done.code, "file is a file, and a run is a folder" in done.err) == (1, True), done.err
    assert (here / "file").read_text() == "precious"


def test_kept_analysis_that_is_damaged(cli: Cli, here: Path) -> None:
    saved_state(here / "model.pt")
    cli("analyze", "model.pt")
    path = here / "lowrank-run/analysis.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    refused = cli("compress", "--budget", "0.5")
    assert (refused.code, "analysis.safetensors" in refused.err) == (1, True)
    assert cli("analyze", "model.pt").code == 0
    (here / "lowrank-run/analysis.json").write_text('{"schema": "lowrank.analysis/9.0"}')
    refused = cli("compress", "--budget", "0.5")
    assert (refused.code, "schema version 9.0" in refused.err) == (1, True)


@pytest.mark.slow
def test_a_compressed_model_is_not_compressed_again(cli: Cli, here: Path, bert_folder: Path) -> None:
    assert cli("compress", bert_folder, "--budget", "0.5", "--calib", "none", "--no-latency").code == 0
    refused = cli("analyze", "lowrank-run/model")
    assert (refused.code, "compressed already" in refused.err) == (1, True)


@pytest.mark.slow
def test_moved_run_still_loads(cli: Cli, here: Path, bert_folder: Path) -> None:
    """Whatever is written can be rebuilt without the original and without the path it was written to."""
    shutil.copytree(bert_folder, here / "original")
    assert cli("compress", "original", "--budget", "0.5", "--calib", "none", "--no-latency").code == 0
    shutil.rmtree(here / "original")
    shutil.move(here / "lowrank-run", here / "elsewhere")
    module = lowrank.load("elsewhere")
    ids = np.arange(12).reshape(2, 6)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    (theirs,) = ort.InferenceSession("elsewhere/model.onnx").run(["last_hidden_state"], feed)
    with torch.no_grad():
        ours = module(**{k: torch.from_numpy(v) for k, v in feed.items()}).last_hidden_state.numpy()
    assert np.allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_half_precision_models(cli: Cli, here: Path) -> None:
    tiny_transformer("bert").to(torch.bfloat16).save_pretrained(here / "m")
    done = cli("compress", "m", "--budget", "0.5", "--no-latency")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_changing_one_setting_keeps_the_others(cli: Cli, here: Path, bert_folder: Path) -> None:
    """The calibration of the analysis stays when `compress` names other weights, or the model again."""
    write_text(here / "text.txt")
    assert cli("analyze", bert_folder, "--calib", "text.txt").code == 0
    first = read(here / "lowrank-run/analysis.json")
    done = cli("compress", bert_folder, "--budget", "0.5", "--no-latency")
    assert done.code == 0, done.err
    assert read(here / "lowrank-run/analysis.json") == first, (
        "the same model with the same settings is not analysed again"
    )
    done = cli("compress", "--budget", "0.5", "--exclude", "layer.1", "--no-latency")
    assert done.code == 0, done.err
    settings = read(here / "lowrank-run/analysis.json")["settings"]
    assert settings["calib"] == str(here / "text.txt") and settings["exclude"] == ["layer.1"]


def test_evaluate_refuses_a_plan_that_the_model_does_not_follow(cli: Cli, here: Path) -> None:
    saved_state(here / "model.pt")
    assert cli("compress", "model.pt", "--budget", "0.3").code == 0
    assert cli("evaluate").code == 0
    assert cli("select", "--budget", "0.8").code == 0
    refused = cli("evaluate")
    assert (refused.code, "is not the plan that" in refused.err) == (1, True)


def test_a_refusal_with_other_settings_keeps_the_analysis(cli: Cli, here: Path, shared_state_run: Path) -> None:
    shutil.copytree(shared_state_run, here / "lowrank-run")
    before = snapshot(here / "lowrank-run")
    assert cli("compress", "--budget", "0.001", "--targets", "all").code == 1
    assert snapshot(here / "lowrank-run") == before


def test_nan_beside_the_weights_is_named(cli: Cli, here: Path, bert_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(bert_folder, here / "m")
    state = load_file(here / "m/model.safetensors")
    state["embeddings.LayerNorm.weight"][3] = float("nan")
    save_file(state, here / "m/model.safetensors", {"format": "pt"})
    refused = cli("compress", "m", "--budget", "0.5", "--calib", write_text(here / "text.txt"))
    assert (refused.code, "embeddings.LayerNorm.weight (32) holds NaN" in refused.err) == (1, True)


@pytest.mark.parametrize(
    "options",
    [
        ("--budget", 0.5, "--quantize", "int8"),
        ("--budget", 0.5, "--profile", "ort"),
        ("--budget", 0.5, "--task", "fidelity"),
        ("--latency", 0.5),
        ("--size", "1KB"),
        ("--max-drop", 0.1),
        ("--budget", 0.5, "--heal", 1),
        ("--budget", 0.5, "--with-past"),
    ],
)
def test_what_a_model_without_runs_cannot_do_is_refused_before_the_work(
    options: tuple[object, ...], tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    outcome = cli("compress", saved_state(tmp_path / "m.pt"), *options, "-o", tmp_path / "run")
    assert outcome.code == 1 and ("--arch" in outcome.err or "trained" in outcome.err)
    assert "analyzing" not in outcome.err and not (tmp_path / "run/analysis.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--calib", "none", "--heal", 1), "healing learns from data"),
        (("--heal", 1, "--device", "cuda:77"), "there is no device 'cuda:77' here"),
        (("--heal", 1, "--calib", "few.txt", "--calib-only"), "samples are too few"),
    ],
)
def test_healing_that_cannot_work_is_refused_before_the_work(
    options: tuple[object, ...], said: str, bert_folder: Path, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    (tmp_path / "few.txt").write_text("the cat sat\nthe dog ran\n")
    given = [tmp_path / o if o == "few.txt" else o for o in options]
    outcome = cli("compress", bert_folder, "--budget", 0.5, *given, "-o", tmp_path / "run")
    assert outcome.code == 1 and said in outcome.err
    assert "analyzing" not in outcome.err and not (tmp_path / "run/analysis.json").exists()
