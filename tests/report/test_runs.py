"""Pages and plots of real runs: written with every result, renewed, and never at the cost of one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_builders
import pytest
from builders import read, saved_state, tiny_bert_folder, write_text
from conftest import Outcome
from pages import SWEEP
from test_page import Elements

import lowrank
from lowrank.artifacts import load_analysis, save_analysis
from lowrank.backends import open_model
from lowrank.calibrate.collect import collect_grams
from lowrank.calibrate.data import load_calibration
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.selection.knapsack import Knapsack
from lowrank.pipeline import analyze_weights, renew_page
from lowrank.pipeline.analyzing import analyze_couplings
from lowrank.pipeline.targets import targeted, usable
from lowrank.progress import silent
from lowrank.report.page import webpage
from lowrank.report.page.page_data import page_data_of
from lowrank.report.page.webpage import rendered

Cli = Callable[..., Outcome]


def page_of(run: Path) -> Elements:
    return Elements((run / "report.html").read_text(encoding="utf-8"))


def check_files(run: Path) -> None:
    """That report.json knows the page as it is."""
    assert read(run / "report.json")["files"]["report.html"] == (run / "report.html").stat().st_size


@pytest.fixture(scope="module")
def analyses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Analysis]:
    """Of models with every kind of coupling; what cutting does to their outputs is not measured."""
    folder = tmp_path_factory.mktemp("analyses")
    text, settings = write_text(folder / "text.txt", 30), lowrank.Settings()

    def analysis(kind: str) -> Analysis:
        backend = open_model(str(tiny_bert_folder(folder / kind, kind)))
        calibration = load_calibration(backend, text, None, 30)
        assert calibration is not None
        weights, skips = targeted(backend, settings)
        couplings = usable(backend, weights)
        grams = collect_grams(
            calibration, weights, silent, {name for coupling in couplings for name in coupling.weights}
        )
        records, found = analyze_weights(backend, weights, grams), analyze_couplings(backend, couplings, grams)
        return Analysis(records, skips, found, grams=grams, source=backend.source, fingerprint=kind)

    return {kind: analysis(kind) for kind in ("bert", "llama")}


@pytest.mark.parametrize(
    ("kind", "structure", "told"),
    [
        ("bert", "two_factor", "rank "),
        ("bert", "pivoted", ", pivoted"),
        ("bert", "product", "channels in each of 4 heads"),
        ("bert", "neurons", " neurons"),
        ("bert", "shared", "one basis for "),
        ("llama", "rotary", "channel pairs in each of 4 heads"),
    ],
)
def test_every_structure(analyses: dict[str, Analysis], kind: str, structure: str, told: str) -> None:
    analysis = analyses[kind]
    plan = Knapsack(structures=(structure,)).select(analysis, Budget.params(0.9))
    assert structure in {option.structure for option in plan.options}
    facts = page_data_of(analysis, plan)
    assert told in Elements(rendered(facts)).text
    for seen in facts.weights:
        assert seen.choice is not None
        assert seen.choice.rank is None or 0 < seen.choice.rank <= seen.full_rank
    if structure == "rotary":
        # Key and query have different numbers of heads.
        assert any("in each of 2 heads" in (s.choice.words if s.choice else "") for s in facts.weights)


def test_a_run_has_a_page_from_the_analysis_on(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = saved_state(tmp_path / "model.pt"), tmp_path / "run"
    first = cli("analyze", model, "-o", run)
    assert first.code == 0 and "report.html" in first.out
    assert "analysis" in page_of(run).text and "parameters are left" not in page_of(run).text
    drawn = tmp_path / "plots"
    done = cli("compress", "--budget", "0.5", "-o", run, "--plots", drawn)
    assert done.code == 0, done.err
    assert "parameters are left" in page_of(run).text
    check_files(run)
    plots = {path.name for path in drawn.iterdir()}
    assert plots >= {"ranks.png", "ranks.svg", "spectra-0.svg", "spectra-1.png", "parameters.svg"}
    assert (drawn / "ranks.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (drawn / "ranks.svg").read_text()
    # The same analysis again leaves the page of the results; a missing one is made.
    assert cli("analyze", model, "-o", run).code == 0
    assert "parameters are left" in page_of(run).text
    (run / "report.html").unlink()
    assert cli("analyze", model, "-o", run).code == 0
    assert "parameters are left" in page_of(run).text
    check_files(run)
    # A sweep that somebody has made since; what is none is not shown.
    whole = {"schema": "lowrank.sweep/1.0", **SWEEP.to_json()}
    broken = {**whole, "points": None}
    for content, shown in ((json.dumps(whole), True), ("[1, null]", False), (json.dumps(broken), False)):
        (run / "sweep.json").write_text(content, encoding="utf-8")
        assert renew_page(run) is None
        assert ("Measured by a sweep" in page_of(run).text) is shown
        assert ("sweep.json is not shown" in page_of(run).text) is not shown
    check_files(run)
    # Measured again, with a page that cannot be drawn: that is said, and the old page does not stay.
    with monkeypatch.context() as broken:
        broken.setattr(webpage, "rendered", lambda facts: 1 / 0)
        done = cli("evaluate", "-o", run)
    assert done.code == 0 and "report.html could not be made (ZeroDivisionError" in done.out
    assert not (run / "report.html").exists() and "report.html" not in read(run / "report.json")["files"]
    assert cli("evaluate", "-o", run).code == 0
    check_files(run)
    # Other settings are another analysis, whose page does not show the results of the one before.
    assert cli("analyze", model, "-o", run, "--include", "layers.0").code == 0
    assert "of an earlier analysis" in page_of(run).text and "parameters are left" not in page_of(run).text


def test_budgets_are_solved_on_request(cli: Cli, tmp_path: Path) -> None:
    model, run = saved_state(tmp_path / "model.pt"), tmp_path / "run"
    assert cli("compress", model, "--budget", "0.5", "-o", run).code == 0
    assert not (run / "tradeoff.json").exists() and "--curve" in page_of(run).text
    assert cli("select", "-o", run).code == 2
    done = cli("select", "-o", run, "--curve")
    assert done.code == 0 and "tradeoff.json" in done.out
    points = read(run / "tradeoff.json")["points"]
    keeps, errors = [point["keep"] for point in points], [point["error"] for point in points]
    assert len(keeps) > 5 and keeps == sorted(set(keeps)) and errors == sorted(errors, reverse=True)
    assert "Every point is the best plan for another budget" in page_of(run).text
    check_files(run)
    drawn = tmp_path / "plots"
    assert cli("evaluate", "-o", run, "--plots", drawn).code == 0 and (drawn / "tradeoff.png").exists()
    # With a budget, the plan is written too; of another analysis, nothing is shown.
    assert cli("select", "-o", run, "--curve", "--budget", "0.4").code == 0
    assert read(run / "plan.json")["keep_ratio"] <= 0.4
    # Which is not the plan of the model that is there.
    assert renew_page(run) is None
    assert "are of an earlier analysis or plan" in page_of(run).text
    before = (run / "tradeoff.json").read_bytes()
    none = cli("select", "-o", run, "--curve", "--multiple", "1000000")
    assert none.code == 1 and "no plan meets any" in none.err and (run / "tradeoff.json").read_bytes() == before
    assert cli("analyze", model, "-o", run, "--include", "layers.0").code == 0
    assert "--curve" in page_of(run).text


def test_a_page_that_cannot_be_drawn_costs_nothing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webpage, "rendered", lambda facts: 1 / 0)
    monkeypatch.chdir(tmp_path)
    saved_state(tmp_path / "model.pt")
    first = cli("analyze", "model.pt")
    assert first.code == 0 and "could not be made" in first.out
    done = cli("compress", "--budget", "0.5")
    assert done.code == 0 and "could not be made" in done.out
    assert (tmp_path / "lowrank-run/model/model.safetensors").exists() and not Path("lowrank-run/report.html").exists()


def test_a_model_that_cannot_be_run(tmp_path: Path) -> None:
    lowrank.compress(saved_state(tmp_path / "model.pt"), 0.5, output=tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert "relative error of the weights" in page.text and "feed-forward" in page.text
    check_files(tmp_path / "run")


def test_an_onnx_model(tmp_path: Path) -> None:
    model, inputs = onnx_builders.matmul_right()
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", **{name: np.repeat(values, 30, 0) for name, values in inputs.items()})
    settings = lowrank.Settings(calib=str(tmp_path / "in.npz"), targets=("all",))
    lowrank.compress(tmp_path / "m.onnx", 0.6, output=tmp_path / "run", settings=settings, latency=False)
    page = page_of(tmp_path / "run")
    assert "Size of model.onnx" in page.text and "m.onnx" in page.text
    check_files(tmp_path / "run")


def test_plots_need_matplotlib_and_say_so_first(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused = cli("analyze", tmp_path / "there-is-none", "--plots", tmp_path / "plots")
    assert refused.code == 1 and "pip install 'lowrank[plot]'" in refused.err
    assert not list(tmp_path.iterdir())


def test_figures_of_an_analysis_are_those_that_were_saved(analyses: dict[str, Analysis], tmp_path: Path) -> None:
    save_analysis(analyses["bert"], tmp_path)
    before, after = (page_data_of(a) for a in (analyses["bert"], load_analysis(tmp_path)))
    assert before.weights == after.weights and before.parts == after.parts
