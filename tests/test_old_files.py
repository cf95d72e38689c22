"""Files that version 0.1.0 wrote are read, and mean what they meant; those of `data/v0.1.0` are never written again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import Blocks, read
from conftest import Outcome

import lowrank
from lowrank.artifacts import load_analysis
from lowrank.pipeline import page_data_in, read_plan, renew_page
from lowrank.results.sweep import Sweep

Cli = Callable[..., Outcome]
OLD = Path(__file__).parent / "data" / "v0.1.0"
RUNS = ("bert", "state")


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a run: a BERT in two factors that was calibrated and healed, or a state dict in pivots that was not."""
    return shutil.copytree(OLD / request.param, tmp_path / request.param)


def without_schema(path: Path) -> dict[str, Any]:
    return {key: value for key, value in read(path).items() if key != "schema"}


def test_an_analysis_has_the_figures_of_its_json(run: Path) -> None:
    analysis, content = load_analysis(run), read(run / "analysis.json")
    assert analysis.fingerprint == content["fingerprint"] and dict(analysis.source) == content["source"]
    assert [record.weight.name for record in analysis.weights] == [each["name"] for each in content["weights"]]
    for record, each in zip(analysis.weights, content["weights"], strict=True):
        assert list(record.weight.shape) == each["shape"]
        assert record.plain.stable_rank == pytest.approx(each["plain"]["stable_rank"])
        assert (record.activation is None) == (each["activation"] is None) == (run.name == "state")
    assert len(analysis.couplings) == len(content["bonds"]) and len(analysis.skips) == len(content["skipped"])


def test_a_plan_is_the_one_that_was_chosen(run: Path) -> None:
    analysis, content = load_analysis(run), without_schema(run / "plan.json")
    plan = read_plan(run / "plan.json", analysis, lowrank.Budget(**content["budget"]))
    assert plan.to_json() == content
    assert plan.cost == read(run / "report.json")["targets"]["params_after"]


def test_a_report_is_written_as_it_was_read(run: Path) -> None:
    content = without_schema(run / "report.json")
    report = lowrank.Report.from_json(content)
    # Said of results since then.
    written = {key: value for key, value in report.to_json().items() if key != "unfit"}
    assert written == content and list(written) == list(content) and not report.unfit
    assert report.targets.to_json() == content["targets"]
    assert [entry.to_json() for entry in report.healing] == content["healing"]
    assert report.provenance.versions == content["provenance"]["versions"]


def test_a_model_loads(run: Path) -> None:
    model: Any = lowrank.load(run, arch=Blocks) if run.name == "state" else lowrank.load(run)
    assert sum(p.numel() for p in model.parameters()) == read(run / "report.json")["model"]["params_after"]
    x = torch.zeros(1, 3, 16) if run.name == "state" else torch.zeros(1, 3, dtype=torch.int64)
    with torch.no_grad():
        found = model(x)
    assert bool(torch.isfinite(found if run.name == "state" else found.last_hidden_state).all())


def test_a_sweep_is_written_as_it_was_read() -> None:
    content = without_schema(OLD / "bert" / "sweep.json")
    sweep = Sweep.from_json(content)
    assert sweep.to_json() == content
    assert {point.name for point in sweep.points} >= {"dense", "dense-int8", "lowrank-0.5", "pruned-0.5"}


def test_a_run_is_inspected(cli: Cli, run: Path) -> None:
    done = cli("inspect", run, "--json")
    assert done.code == 0, done.err
    assert f"{read(run / 'report.json')['targets']['params_after']}" in done.out


def test_ranks_are_chosen_anew(cli: Cli, run: Path) -> None:
    before = read(run / "plan.json")
    done = cli("select", "-o", run, "--budget", "0.4")
    assert done.code == 0, done.err
    plan = read(run / "plan.json")
    assert plan["analysis"] == before["analysis"] and plan["dense_cost"] == before["dense_cost"]
    assert plan["keep_ratio"] <= 0.4 < before["keep_ratio"]


def test_a_page_is_drawn_anew(run: Path) -> None:
    assert renew_page(run) is None
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(record.weight.name.removesuffix(".weight") in page for record in load_analysis(run).weights)
    assert "lowrank-0.5-int8" in page or run.name == "state"
    assert page_data_in(run)


def test_a_result_is_cut_again(cli: Cli, run: Path) -> None:
    """The original is not there any more."""
    done = cli("truncate", run, "--budget", "0.3", "-o", run.with_name("cut"), "--no-timing", "--no-refit")
    assert done.code == 0, done.err
    assert read(run.with_name("cut") / "report.json")["targets"]["keep_ratio"] <= 0.3
