"""A finished result is cut again: nested, never over its budget, without the original, and said to the last group."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from architectures import analysis_of, with_biases
from builders import build_blocks, read, saved_state, tiny_transformer, write_text, write_tokenizer
from conftest import Outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lowrank
from lowrank.backends import Opening, open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.read_back import read_finished
from lowrank.core.analysis import Analysis
from lowrank.core.selection.remaining import CompressedWeights, recut, remaining
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Option, Replacement
from lowrank.core.structures.permute import agree_channel_order
from lowrank.core.truncation.pivoted import pivot
from lowrank.core.weight import Group
from lowrank.core.weight_analysis import analyze_weight

Cli = Callable[..., Outcome]
PLAIN = lowrank.Settings(calib="none")
TWO = lowrank.Knapsack(structures=("two_factor",))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def product(run: Path, layer: str) -> np.ndarray:
    state = lowrank.load(run)
    assert isinstance(state, dict)
    if f"{layer}.weight" in state:
        return state[f"{layer}.weight"].double().numpy()
    factors = [state[f"{layer}.{which}.weight"].double().numpy() for which in ("left", "right")]
    return factors[0] @ factors[1]


@pytest.fixture(scope="module")
def state_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict at 0.6, in two factors; the original is gone."""
    folder = tmp_path_factory.mktemp("state")
    saved_state(folder / "model.pt")
    lowrank.compress(folder / "model.pt", 0.6, output=folder / "run", selector=TWO, settings=PLAIN)
    (folder / "model.pt").rename(folder / "kept.pt")
    return folder / "run"


@pytest.fixture(scope="module")
def bert_run(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT at 0.6 of all structures, calibrated and refitted."""
    folder = tmp_path_factory.mktemp("bert-run")
    shutil.copytree(bert_folder, folder / "model")
    text = lowrank.Settings(calib=str(write_text(folder / "text.txt", 60)))
    lowrank.compress(folder / "model", 0.6, output=folder / "run", settings=text, latency=False)
    return folder / "run"


def test_two_cuts_are_one(state_run: Path, tmp_path: Path) -> None:
    """The subspaces are nested: compressing at once and cutting down to there give the same matrices."""
    direct = lowrank.compress(
        state_run.parent / "kept.pt", 0.2, output=tmp_path / "direct", selector=TWO, settings=PLAIN
    )
    lowrank.truncate(state_run, 0.4, output=tmp_path / "half")
    twice = lowrank.truncate(tmp_path / "half", 0.2, output=tmp_path / "twice")
    once = lowrank.truncate(state_run, 0.2, output=tmp_path / "once")
    for layer in ("layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down"):
        want = product(tmp_path / "direct", layer)
        for run in ("once", "twice"):
            assert np.allclose(product(tmp_path / run, layer), want, atol=1e-6 * np.abs(want).max())
    assert direct.targets == twice.targets == once.targets
    assert direct.error.relative == pytest.approx(once.error.relative)
    assert len(twice.cut) == 2 and twice.cut[-1].run != once.cut[-1].run
    # What was lost on the way adds up at right angles.
    first, second = (cut.weights for cut in twice.cut)
    assert once.cut[-1].weights ** 2 == pytest.approx(first**2 + (1 - first**2) * second**2, rel=1e-4)


@settings(max_examples=8)
@given(budget=st.floats(0.1, 0.6))
def test_never_over_budget(state_run: Path, tmp_path_factory: pytest.TempPathFactory, budget: float) -> None:
    out = tmp_path_factory.mktemp("cut") / "run"
    now = read(state_run / "plan.json")["keep_ratio"]
    if budget > now:
        with pytest.raises(lowrank.LowRankError, match=f"keeps {now:.4f}"):
            lowrank.truncate(state_run, budget, output=out)
        return
    report = lowrank.truncate(state_run, budget, output=out)
    assert report.targets.keep_ratio <= budget
    state = lowrank.load(out)
    assert isinstance(state, dict)
    assert sum(t.numel() for t in state.values()) == report.model.params_after
    assert report.cut[-1].keep_before == now


@pytest.mark.parametrize("which", ["state_run", pytest.param("bert_run", marks=pytest.mark.slow)])
def test_at_its_own_size_nothing_changes(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: Path = request.getfixturevalue(which)
    keep = read(run / "plan.json")["keep_ratio"]
    report = lowrank.truncate(run, keep, output=tmp_path / "out", latency=False)
    assert report.targets.keep_ratio == keep
    before, after = lowrank.load(run), lowrank.load(tmp_path / "out")
    old, new = (m if isinstance(m, dict) else m.state_dict() for m in (before, after))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    assert which == "state_run" or report.cut[-1].quality.relative_error == 0


def test_the_command(cli: Cli, state_run: Path) -> None:
    before = snapshot(state_run)
    done = cli("truncate", state_run, "--budget", "0.3")
    assert done.code == 0, done.err
    out = state_run.with_name("run-0.3")
    assert "keep ratio of the result that was cut" in done.out and str(out) in done.out
    assert "cannot be read any more" in done.out, "that the original is gone is said"
    assert snapshot(state_run) == before
    again = cli("truncate", out, "--budget", "0.2", "-o", out, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["targets"]["keep_ratio"] <= 0.2
    assert read(out / "report.json")["provenance"]["cut_from"] == read(out / "report.json")["cut"][-1]["run"]
    assert len(read(out / "report.json")["cut"]) == 2
    for unit in ("bytes", "macs"):
        other = cli("truncate", state_run, "--budget", "0.3", "--of", unit, "-o", out)
        assert other.code == 0 and read(out / "report.json")["budget"]["reached"] <= 0.3, other.err
    worst = read(state_run / "plan.json")["worst_relative_error"]
    error = cli("truncate", state_run, "--error", f"{worst + 0.1:.3f}", "-o", out)
    assert error.code == 0 and read(out / "plan.json")["worst_relative_error"] <= worst + 0.1, error.err


def test_refusals_teach_and_cost_nothing(cli: Cli, state_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(state_run, tmp_path / "run")
    before = snapshot(run)
    for arguments, code, told in (
        (("--budget", "0.9"), 1, "only gets smaller"),
        (("--budget", "0.0001"), 1, "smallest budget that can be met"),
        (("--budget", "1.5"), 1, "at most 1"),
        (("--error", "0.001"), 1, "has lost"),
        (("--size", "1MB"), 1, "model.onnx"),
        ((), 2, "--budget"),
        (("--budget", "0.3", "--error", "0.3"), 2, "one of"),
    ):
        refused = cli("truncate", run, *arguments, "-o", run)
        assert refused.code == code and told in " ".join(refused.err.split()), (arguments, refused.err)
        assert snapshot(run) == before
    assert cli("truncate", tmp_path / "nothing", "--budget", "0.3").code == 1
    assert not (tmp_path / "nothing").exists() and not (tmp_path / "nothing-0.3").exists()


def test_damage_is_told(cli: Cli, state_run: Path, tmp_path: Path) -> None:
    for number, (name, spoil) in enumerate(
        [
            ("model/lowrank.json", lambda path: path.write_text("{}")),
            ("model/lowrank.json", lambda path: path.write_text(path.read_text().replace('"two_factor"', '"odd"'))),
            ("model/model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:200])),
            ("model/model.safetensors", lambda path: path.unlink()),
            ("plan.json", lambda path: path.unlink()),
            ("analysis.safetensors", lambda path: path.write_bytes(b"no")),
            ("model", shutil.rmtree),
        ]
    ):
        run = shutil.copytree(state_run, tmp_path / f"run{number}")
        spoil(run / name)
        refused = cli("truncate", run, "--budget", "0.3", "-o", tmp_path / "out")
        assert refused.code == 1 and refused.err.count("\n") <= 3, (name, refused.err)
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_of_all_structures_without_its_original(cli: Cli, bert_run: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone"
    shutil.copytree(bert_run, lone)
    original = bert_run.parent / "model"
    there = lowrank.truncate(bert_run, 0.3, output=tmp_path / "there", latency=False)
    original.rename(tmp_path / "away")
    try:
        alone = lowrank.truncate(lone, 0.3, output=tmp_path / "alone", latency=False)
    finally:
        (tmp_path / "away").rename(original)
    assert alone.targets == there.targets and alone.targets.keep_ratio <= 0.3
    assert alone.model == there.model
    assert any("against the finished result" in note for note in alone.notes)
    a, b = (lowrank.load(tmp_path / name).state_dict() for name in ("alone", "there"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    # Without the original what is measured of the model is what it lost against the finished one.
    assert alone.quality is not None and there.quality is not None
    assert alone.quality.relative_error == pytest.approx(alone.cut[-1].quality.relative_error, rel=1e-3)
    assert there.quality.relative_error > there.cut[-1].quality.relative_error > 0
    # All that can be done with a run can be done with this one.
    evaluated = cli("evaluate", "-o", tmp_path / "there", "--json")
    assert evaluated.code == 0, evaluated.err
    content = json.loads(evaluated.out)
    assert content["cut"] == [cut.to_json() for cut in there.cut] and content["parity"]["max_abs"] < 1e-4
    # Of each output: which of them is the worst may be a matter of roundings.
    found = {each["name"]: each["relative_error"] for each in content["quality"]["sets"][0]["outputs"]}
    known = {each["name"]: each["relative_error"] for each in there.to_json()["quality"]["sets"][0]["outputs"]}
    assert len(found) == 2 and found == pytest.approx(known, rel=1e-4)
    healed = lowrank.heal(tmp_path / "there", lowrank.Training(steps=10), latency=False)
    assert healed.cut == there.cut and len(healed.healing) == 1
    again = lowrank.truncate(tmp_path / "there", 0.2, output=tmp_path / "again", latency=False)
    assert again.to_json()["healing"] == read(tmp_path / "there/report.json")["healing"] and len(again.healing) == 1
    assert [cut.healed for cut in again.cut] == [0, int(healed.healing[0].kept)]
    assert again.targets.keep_ratio <= 0.2 and again.parity is not None and not again.problems


@pytest.mark.slow
@pytest.mark.slow
def test_a_cut_is_judged_on_every_set(bert_run: Path, tmp_path: Path) -> None:
    more = lowrank.Settings(calib=str(write_text(tmp_path / "more.txt", 200)))
    report = lowrank.truncate(bert_run, 0.06, output=tmp_path / "cut", latency=False, settings=more)
    quality, before = report.quality, report.cut[-1].quality
    assert quality is not None and before is not None and quality.sets and before.sets
    names = [row.name for row in before.sets]
    assert names == [row.name for row in quality.sets] and len(names) > 1
    assert before.fidelity == min(row.fidelity for row in before.sets)
    assert quality.fidelity is not None and quality.fidelity < 0.9 and "Not fit for use" in report.unfit[0]
    assert all(row.name in report.unfit[0] for row in quality.sets if row.fidelity < 0.9)
    assert f"same answers as the earlier result, {before.where}" in (tmp_path / "cut/report.html").read_text("utf-8")


@pytest.mark.slow
def test_refit_helps_and_lost_data_is_said(bert_run: Path, tmp_path: Path) -> None:
    refitted = lowrank.truncate(bert_run, 0.3, output=tmp_path / "a", latency=False)
    plain = lowrank.truncate(bert_run, 0.3, output=tmp_path / "b", latency=False, refit=False)
    errors = [r.cut[-1].quality.relative_error for r in (refitted, plain)]
    assert errors[0] < errors[1]
    run = shutil.copytree(bert_run, tmp_path / "run")
    text = bert_run.parent / "text.txt"
    text.rename(tmp_path / "away.txt")
    try:
        blind = lowrank.truncate(run, 0.3, output=tmp_path / "c", latency=False)
        given_data = lowrank.truncate(
            run, 0.3, output=tmp_path / "d", latency=False, settings=lowrank.Settings(calib=str(tmp_path / "away.txt"))
        )
    finally:
        (tmp_path / "away.txt").rename(text)
    assert any("random inputs" in note for note in blind.notes) and blind.cut[-1].quality.data == "random inputs"
    assert given_data.cut[-1].quality == refitted.cut[-1].quality


@pytest.mark.slow
def test_rounded_results_are_cut_and_rounded_again(cli: Cli, bert_run: Path, tmp_path: Path) -> None:
    text = bert_run.parent / "text.txt"
    model = bert_run.parent / "model"
    done = cli(
        *("compress", model, "--budget", "0.6", "--quantize", "int8", "--calib", text, "-o", tmp_path / "run"),
        "--no-latency",
    )
    assert done.code == 0, done.err
    report = lowrank.truncate(tmp_path / "run", 0.4, output=tmp_path / "cut", latency=False)
    assert report.onnx is not None and report.onnx.dtype == "int8" and not report.problems
    # Of a graph alone nothing is left that could be cut.
    shutil.rmtree(tmp_path / "run/model")
    refused = cli("truncate", tmp_path / "run", "--budget", "0.3")
    assert refused.code == 1 and "rounded to int8" in refused.err


@pytest.mark.slow
def test_a_size_is_cut_to_a_smaller_size(cli: Cli, bert_run: Path, tmp_path: Path) -> None:
    text, model = bert_run.parent / "text.txt", bert_run.parent / "model"
    sized = cli("compress", model, "--size", "42KB", "--calib", text, "-o", tmp_path / "sized", "--no-latency")
    assert sized.code == 0, sized.err
    assert cli("truncate", tmp_path / "sized", "--budget", "0.3").code == 1
    size = lowrank.truncate(tmp_path / "sized", lowrank.Budget.size(37_000), output=tmp_path / "s", latency=False)
    assert (tmp_path / "s/model.onnx").stat().st_size <= 37_000 and not size.problems


def outputs(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(str(path))
    return session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})[0]


def test_the_square(bert_folder: Path, tmp_path: Path) -> None:
    """Cutting a torch run and exporting it is cutting its graph."""
    lowrank.compress(bert_folder, 0.6, output=tmp_path / "run", selector=TWO, settings=PLAIN, latency=False)
    graph = shutil.copytree(tmp_path / "run", tmp_path / "graph")
    shutil.rmtree(graph / "model")
    one = lowrank.truncate(tmp_path / "run", 0.3, output=tmp_path / "one", latency=False)
    other = lowrank.truncate(graph, 0.3, output=tmp_path / "other", latency=False)
    assert one.targets == other.targets
    assert read(tmp_path / "one/plan.json")["groups"] == read(tmp_path / "other/plan.json")["groups"]
    backend = open_model(bert_folder)
    assert isinstance(backend.signature, Signature)
    feed = backend.signature.example(2, 9, padded=True)
    a, b = (outputs(tmp_path / name / "model.onnx", feed) for name in ("one", "other"))
    assert np.allclose(a, b, atol=1e-5)
    assert not np.allclose(a, outputs(tmp_path / "run/model.onnx", feed), atol=1e-3)
    assert not other.problems and other.parity is not None


@pytest.mark.slow
def test_graphs(cli: Cli, tmp_path: Path) -> None:
    """A run of an ONNX file: its graph is taken apart, cut, and can be measured and cut again."""
    write_text(tmp_path / "text.txt")
    folder = tmp_path / "dense"
    tiny_transformer("bert").save_pretrained(folder)
    write_tokenizer(folder)
    lowrank.export(folder, tmp_path / "onnx")
    path = tmp_path / "onnx/model.onnx"
    shutil.copyfile(folder / "tokenizer.json", tmp_path / "onnx/tokenizer.json")
    text = lowrank.Settings(calib=str(tmp_path / "text.txt"))
    lowrank.compress(path, 0.6, output=tmp_path / "run", settings=text, latency=False)
    assert {"pivoted"} <= {g["structure"] for g in read(tmp_path / "run/plan.json")["groups"]}
    keep = read(tmp_path / "run/plan.json")["keep_ratio"]
    same = lowrank.truncate(tmp_path / "run", keep, output=tmp_path / "same", latency=False)
    assert same.cut[-1].quality.relative_error < 1e-5
    backend = open_model(path)
    assert isinstance(backend.signature, Signature)
    feed = backend.signature.example(2, 9)
    a, b = (outputs(tmp_path / name / "model.onnx", feed) for name in ("run", "same"))
    assert np.allclose(a, b, atol=1e-5)
    cut = lowrank.truncate(tmp_path / "run", 0.3, output=tmp_path / "cut", latency=False)
    assert cut.targets.keep_ratio <= 0.3 and not cut.problems and cut.parity is not None
    evaluated = cli("evaluate", "-o", tmp_path / "cut", "--json")
    assert evaluated.code == 0, evaluated.err
    again = json.loads(evaluated.out)
    assert cut.quality is not None and again["quality"]["fidelity"] == pytest.approx(cut.quality.fidelity, abs=1e-4)
    shutil.rmtree(tmp_path / "onnx")
    twice = lowrank.truncate(tmp_path / "cut", 0.2, output=tmp_path / "cut", latency=False)
    assert twice.targets.keep_ratio <= 0.2 and not twice.problems


@pytest.mark.slow
def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = tiny_transformer("gpt2")
    model.save_pretrained(tmp_path / "dense")
    everything = lowrank.Settings(calib="none", targets=("projections", "embeddings"))
    lowrank.compress(tmp_path / "dense", 0.6, output=tmp_path / "run", settings=everything, latency=False)
    shutil.rmtree(tmp_path / "dense")
    report = lowrank.truncate(tmp_path / "run", 0.3, output=tmp_path / "cut", latency=False)
    assert report.targets.keep_ratio <= 0.3 and not report.problems
    module = lowrank.load(tmp_path / "cut")
    assert isinstance(module, nn.Module)
    table, head = module.get_submodule("transformer.wte"), module.get_submodule("lm_head")
    assert table.left.weight is head.left.weight and table.right.weight is head.right.weight
    assert sum(p.numel() for p in module.parameters()) == report.model.params_after


@pytest.mark.slow
def test_modules_in_memory_are_given_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build_blocks().eval()
    lowrank.compress(module, 0.6, output=tmp_path / "run", settings=PLAIN, latency=False)
    with pytest.raises(lowrank.LowRankError, match="--arch"):
        lowrank.truncate(tmp_path / "run", 0.3, latency=False)
    given_again = lowrank.truncate(tmp_path / "run", 0.3, output=tmp_path / "a", model=module, latency=False)
    built = lowrank.truncate(
        tmp_path / "run",
        0.3,
        output=tmp_path / "b",
        opening=Opening(arch="builders:build_blocks"),
        latency=False,
    )
    a, b = (lowrank.load(tmp_path / name, arch=build_blocks).state_dict() for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert given_again.cut[-1].quality == built.cut[-1].quality


def saved(backend: ModuleBackend, analysis: Analysis, made: dict[str, Replacement], folder: Path) -> Any:
    """A rewritten model after it was saved and taken apart again: as it was, the dense one, and what was in it."""
    small = backend.rewrite(made)
    folder.mkdir()
    small.save(folder)
    full, held = read_finished(folder, analysis, Opening(), backend)
    assert isinstance(full, ModuleBackend)
    return small, full, held


@pytest.mark.slow_but("bert")
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "mixtral", "vit", "encoder", "whisper"])
def test_every_structure_is_read_back_and_cut(name: str, tmp_path: Path) -> None:
    """Reading back gives the very numbers, and the dense model around them the same outputs; cutting to the rank that
    is there changes nothing, cutting further what the structure says."""
    dense = open_model(with_biases(name))
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    feeds = tuple(dense.signature.example(2, 11) for _ in range(2))
    analysis = analysis_of(dense, dense.couplings, feeds)
    for number, coupling in enumerate(analysis.couplings):
        structure = structure_named(coupling.structure)
        assert structure is not None
        rank = max(2, int(coupling.ranks[-1]) * 2 // 3)
        made = dict(structure.factorize(coupling.group, rank, analysis, dense))
        small, full, held = saved(dense, analysis, made, tmp_path / str(number))
        feed = feeds[0]
        scale = float(np.abs(small.run(feed)).max())
        assert np.abs(full.run(feed) - small.run(feed)).max() <= 1e-4 * scale, (coupling.group.name, coupling.structure)
        assert np.array_equal(full.rewrite(held).run(feed), small.run(feed))
        weights = {r.weight.name: r.weight for r in analysis.weights}
        numbers = CompressedWeights(held, weights, full)
        option = structure.at(coupling.group, analysis, rank)
        rest = tuple(
            structure_named("dense").at(g, analysis, 0)
            for g in analysis.singles
            if g.name not in coupling.group.weights
        )
        left = remaining(analysis, (option, *rest), numbers, {}, False)
        known = left.coupling(coupling.group, coupling.structure)
        assert known is not None and known.error_at(np.array([rank]))[0] == 0
        for smaller in (rank, rank // 2):
            cut = dict(recut(structure.at(coupling.group, left, smaller), left, numbers))
            again = full.rewrite(cut).run(feed)
            if smaller == rank:
                assert np.array_equal(again, small.run(feed))
            direct = dense.rewrite(structure.factorize(coupling.group, smaller, analysis, dense)).run(feed)
            if coupling.structure in ("product", "rotary"):
                # Without a refit the channels of fewer are some of those of more.
                assert np.abs(again - direct).max() <= 1e-3 * scale, (coupling.group.name, coupling.structure)
            assert np.isfinite(again).all()


def singles(dense: ModuleBackend) -> Analysis:
    return Analysis(tuple(analyze_weight(w, dense.read(w.name)) for w in dense.weights if w.full_rank > 1))


@pytest.mark.slow_but("bert")
@pytest.mark.parametrize("name", ["bert", "gpt2", "mixtral", "resnet", "wav2vec2", "encoder"])
def test_factors_of_every_layer_are_read_back(name: str, tmp_path: Path) -> None:
    """Linear layers of both layouts, tables with their heads, convolutions, spatial factors and experts; orders that
    neighbours have agreed on too."""
    dense = open_model(with_biases(name))
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    analysis, feed = singles(dense), dense.signature.example(2, 11)
    ways: dict[str, dict[str, Replacement]] = {"two_factor": {}, "pivoted": {}, "spatial": {}}
    for record in analysis.weights:
        weight, matrix = record.weight, dense.read(record.weight.name)
        rank = max(1, weight.full_rank // 2)
        factors = analysis.truncated(weight.name, matrix, rank)
        ways["two_factor"][weight.name] = Replacement("two_factor", factors)
        if weight.stack == 1 and all(layer.kind == "linear" for layer in weight.layers):
            ways["pivoted"][weight.name] = Replacement("pivoted", pivot(factors))
        if weight.spatial is not None:
            spatial, group = structure_named("spatial"), Group(weight.name, (weight.name,))
            assert spatial is not None
            ways["spatial"] |= spatial.factorize(group, 3, analysis, dense)
    ways["absorbed"] = agree_channel_order(ways["pivoted"], dense.weights, dense.couplings, dense)
    for way, made in ways.items():
        if not made:
            continue
        small, full, held = saved(dense, analysis, made, tmp_path / way)
        want = small.run(feed)
        scale = float(np.abs(want).max())
        assert np.abs(full.run(feed) - want).max() <= 1e-4 * scale, way
        assert np.array_equal(full.rewrite(held).run(feed), want), way
        options = tuple(
            Option(n, r.structure, r.factors.rank, analysis[n].weight.params, 0.1) for n, r in made.items()
        ) + tuple(
            structure_named("dense").at(group, analysis, 0) for group in analysis.singles if group.name not in made
        )
        numbers = CompressedWeights(held, {r.weight.name: r.weight for r in analysis.weights}, full)
        left = remaining(analysis, options, numbers, {}, False)
        cut: dict[str, Replacement] = {}
        for option in options:
            if option.structure != "dense":
                cut |= recut(replace(option, rank=max(1, option.rank - 1)), left, numbers)
        again = full.rewrite(agree_channel_order(cut, full.weights, dense.couplings, numbers)).run(feed)
        assert np.isfinite(again).all() and not np.array_equal(again, want), way
        same = {n: r for o in options if o.structure != "dense" for n, r in recut(o, left, numbers).items()}
        kept = full.rewrite(agree_channel_order(same, full.weights, dense.couplings, numbers)).run(feed)
        assert np.abs(kept - want).max() <= 1e-4 * scale, way


def test_healed_factors_are_put_in_order_anew(tmp_path: Path) -> None:
    """Training leaves factors in no order: what is kept is what their product has most of."""
    saved_state(tmp_path / "model.pt")
    lowrank.compress(tmp_path / "model.pt", 0.6, output=tmp_path / "run", selector=TWO, settings=PLAIN)
    file = tmp_path / "run/model/model.safetensors"
    from safetensors.torch import load_file, save_file

    state = load_file(file)
    for name in [n for n in state if n.endswith("left.weight")]:
        mixed = torch.linalg.qr(torch.randn(state[name].shape[1], state[name].shape[1]))[0]
        right = name.replace("left", "right")
        state[name] = state[name] @ mixed * 1.1
        state[right] = mixed.T @ state[right]
    save_file(state, file, {"format": "pt"})
    lowrank.truncate(tmp_path / "run", 0.3, output=tmp_path / "cut")
    groups = [g for g in read(tmp_path / "cut/plan.json")["groups"] if g["structure"] == "two_factor"]
    assert len(groups) > 2
    for group in groups:
        layer = group["name"].removesuffix(".weight")
        whole, cut = product(tmp_path / "run", layer), product(tmp_path / "cut", layer)
        u, s, v = np.linalg.svd(whole)
        best = u[:, : group["rank"]] * s[: group["rank"]] @ v[: group["rank"]]
        assert np.allclose(cut, best, atol=1e-5 * s[0])


def test_names_of_cut_runs() -> None:
    from lowrank.pipeline import cut_name

    assert cut_name("a/run/", 0.25) == Path("a/run-0.25")
    assert cut_name(".", 0.2) == Path.cwd().with_name(f"{Path.cwd().name}-0.2")
    assert cut_name("run", lowrank.Budget.error(0.1)) == Path("run-error-0.1")


@pytest.mark.slow
def test_adapters_stay_beside_what_they_are_for(cli: Cli, bert_folder: Path, tmp_path: Path) -> None:
    """A LoRA that was kept fits the cut model as well; one that was trained for the finished model stays with it."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["query", "value"], init_lora_weights=False)
    dense: Any = open_model(bert_folder)
    peft.get_peft_model(dense.module, config).save_pretrained(str(tmp_path / "lora"))
    text, run = write_text(tmp_path / "text.txt", 80), tmp_path / "run"
    options = ("--budget", 0.6, "--calib", text, "--no-latency", "-o", run)
    assert cli("compress", bert_folder, *options, "--lora", tmp_path / "lora", "--keep-lora").code == 0
    report = lowrank.truncate(run, 0.4, output=tmp_path / "cut", latency=False)
    assert not report.problems and {o["structure"] for o in read(tmp_path / "cut/plan.json")["groups"]} <= {
        "dense",
        "two_factor",
        "pivoted",
        "shared",
    }
    names = ("adapter/adapter_model.safetensors", "adapter.onnx_adapter", "model_with_adapters.onnx")
    assert all((tmp_path / "cut" / name).is_file() for name in names)
    assert (tmp_path / "cut" / names[0]).read_bytes() == (run / names[0]).read_bytes()

    assert cli("compress", bert_folder, *options).code == 0
    assert cli("heal", run, "--steps", 30, "--adapter", 2, "--no-latency").code == 0
    kept = (run / names[0]).read_bytes()
    refused = cli("truncate", run, "--budget", 0.4, "-o", run, "--no-latency")
    assert refused.code == 1 and "would be lost" in refused.err and (run / names[0]).read_bytes() == kept
    done = cli("truncate", run, "--budget", 0.4, "--no-latency")
    assert done.code == 0 and "so it was not copied" in done.out and not (tmp_path / "run-0.4/adapter").exists(), (
        done.err
    )


@pytest.mark.slow
def test_exported_programs(tmp_path: Path) -> None:
    program = torch.export.export(
        build_blocks().eval(), (torch.randn(2, 16),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    torch.export.save(program, tmp_path / "blocks.pt2")
    lowrank.compress(tmp_path / "blocks.pt2", 0.6, output=tmp_path / "run", settings=PLAIN, latency=False)
    keep = read(tmp_path / "run/plan.json")["keep_ratio"]
    lowrank.truncate(tmp_path / "run", keep, output=tmp_path / "same", latency=False)
    cut = lowrank.truncate(tmp_path / "run", 0.3, output=tmp_path / "cut", latency=False)
    assert cut.targets.keep_ratio <= 0.3 and not cut.problems and cut.parity is not None
    x = torch.randn(3, 16)
    models = [lowrank.load(tmp_path / name) for name in ("run", "same", "cut")]
    before, same, after = (model(x) for model in models if isinstance(model, nn.Module))
    assert torch.equal(before, same) and not torch.allclose(before, after, atol=1e-3)
    (tmp_path / "blocks.pt2").unlink()
    with pytest.raises(lowrank.LowRankError, match="put .*blocks.pt2 back"):
        lowrank.truncate(tmp_path / "run", 0.3, output=tmp_path / "none")
    assert not (tmp_path / "none").exists()
