"""What is streamed comes out as what is whole in memory, and what is not touched stays as it was, byte for byte."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import NO_DATA, STREAMED, checkpoint, contents, index_of
from safetensors.torch import load_file, save_file

import lowrank
from lowrank.backends import open_model
from lowrank.backends.checkpoint.location import Location
from lowrank.backends.checkpoint.shards import open_shards
from lowrank.backends.config_block import is_block
from lowrank.core.weight import View
from lowrank.errors import ArtifactError, PlanMismatch, ResourceError, UnsupportedModel
from lowrank.pipeline import Execution, Settings, foresee
from lowrank.pipeline import estimate as estimating

IDS = torch.arange(24).reshape(2, 12)


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model.float().eval()(IDS)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("llama"), dtype=torch.float32, tie_word_embeddings=False)


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "BertModel", "GPT2LMHeadModel"])
@pytest.mark.slow_but("LlamaForCausalLM")
def test_the_same_plan_and_the_same_model_as_in_memory(kind: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", kind, torch.float32)
    whole = lowrank.compress(folder, 0.5, output=tmp_path / "whole", settings=NO_DATA, latency=False)
    streamed = lowrank.compress(folder, 0.5, output=tmp_path / "streamed", settings=NO_DATA, execution=STREAMED)
    plans = [json.loads((tmp_path / run / "plan.json").read_text()) for run in ("whole", "streamed")]
    names = [{g["name"]: (g["structure"], g["rank"]) for g in plan["groups"]} for plan in plans]
    # A fused projection is split in memory, and stays one tensor of the checkpoint when it is streamed.
    if kind != "GPT2LMHeadModel":
        assert names[0] == names[1]
        assert whole.targets == streamed.targets
        a, b = outputs(lowrank.load(tmp_path / "whole")), outputs(lowrank.load(tmp_path / "streamed"))
        assert torch.allclose(a, b, atol=2e-5 * float(a.abs().max()))
    assert streamed.targets.keep_ratio <= 0.5
    assert streamed.model.params_after == sum(p.numel() for p in lowrank.load(tmp_path / "streamed").parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_full_rank_loses_nothing_but_the_cast(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", dtype=dtype)
    analysis = lowrank.analyze(folder, output=tmp_path / "run", settings=NO_DATA, execution=STREAMED)
    groups = [{"name": r.weight.name, "structure": "two_factor", "rank": r.weight.full_rank} for r in analysis.weights]
    plan = {"schema": "lowrank.plan/1.0", "analysis": analysis.fingerprint, "groups": groups}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    report = lowrank.compress(None, plan=tmp_path / "plan.json", output=tmp_path / "run", execution=STREAMED)
    assert report.error.relative < 1e-6
    unit = {torch.float32: 2**-24, torch.bfloat16: 2**-9, torch.float16: 2**-12}[dtype]
    assert 0.1 * unit < report.error.cast_relative < 4 * unit
    import transformers

    dense = outputs(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))
    small = outputs(lowrank.load(tmp_path / "run"))
    assert float((dense - small).norm() / dense.norm()) < 40 * unit


def test_the_cast_error_is_that_of_the_files(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    run = tmp_path / "run"
    report = lowrank.compress(folder, 0.5, output=run, settings=NO_DATA, execution=STREAMED)
    backend: Any = lowrank.open_model(folder, streamed=True)
    model: Any = lowrank.load(run)
    for name, cast in report.error.cast_per_weight.items():
        exact = backend.read(name).astype("float64")
        stored = model.get_submodule(name.removesuffix(".weight")).double().weight.detach().numpy()
        whole = float(((exact - stored) ** 2).sum() ** 0.5 / (exact**2).sum() ** 0.5)
        # The two errors are nearly orthogonal.
        assert whole == pytest.approx((report.error.per_weight[name] ** 2 + cast**2) ** 0.5, rel=0.1), name


def test_what_is_not_factored_is_copied_byte_for_byte(llama: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    report = lowrank.compress(llama, 0.4, output=run, settings=NO_DATA, execution=STREAMED)
    before, after = index_of(llama), index_of(run / "model")
    assert len(set(before.values())) > 2, "the model is in several shards"
    replaced = {stem for stem in report.error.cast_per_weight}
    sources, results = open_shards(Location(str(llama))), open_shards(Location(str(run / "model")))
    kept = [name for name in before if name not in replaced]
    assert kept
    for name in kept:
        assert sources.raw(name) == results.raw(name), name
    assert set(after) == set(results.tensors)
    assert json.loads((run / "model" / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == (
        results.nbytes
    )
    written = json.loads((run / "model" / "config.json").read_text())
    assert is_block(written.pop("quantization_config"))
    assert written == json.loads((llama / "config.json").read_text())
    assert report.model.bytes_after == results.nbytes


def test_eight_bit_numbers_are_read_and_written_as_they_are(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    index = index_of(folder)
    for file in set(index.values()):
        tensors = load_file(folder / file)
        save_file(
            {n: t.to(torch.float8_e4m3fn) if t.dim() == 2 and "layers" in n else t for n, t in tensors.items()},
            folder / file,
            {"format": "pt"},
        )
    run = tmp_path / "run"
    report = lowrank.compress(folder, 0.6, output=run, settings=NO_DATA, execution=STREAMED)
    stored = open_shards(Location(str(run / "model"))).tensors
    kinds = {stored[name].dtype for name in stored if "left" in name or "right" in name}
    assert kinds == {"F8_E4M3"}
    assert 0.005 < report.error.cast_relative < 0.08
    assert {p.dtype for p in lowrank.load(run).parameters()} == {torch.float8_e4m3fn, torch.bfloat16}


@pytest.mark.slow
def test_tied_tables_are_factored_once(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", dtype=torch.float32, tie_word_embeddings=True)
    settings = Settings(calib="none", targets=("projections", "embeddings"))
    lowrank.compress(folder, 0.5, output=tmp_path / "run", settings=settings, execution=STREAMED)
    lowrank.compress(folder, 0.5, output=tmp_path / "whole", settings=settings, latency=False)
    model: Any = lowrank.load(tmp_path / "run")
    assert model.lm_head.left.weight is model.model.embed_tokens.left.weight
    a, b = outputs(model), outputs(lowrank.load(tmp_path / "whole"))
    assert torch.allclose(a, b, atol=2e-5 * float(b.abs().max()))


def test_large_models_are_streamed_unasked(llama: Path, tmp_path: Path) -> None:
    params = sum(stored.params for stored in open_shards(Location(str(llama))).tensors.values())
    assert lowrank.open_model(llama, memory=15 * params).source["kind"] == "checkpoint"
    assert lowrank.open_model(llama, memory=17 * params).source["kind"] == "huggingface"
    assert lowrank.open_model(llama, streamed=True).source["kind"] == "checkpoint"


def test_an_analysis_that_was_streamed_is_compressed_streamed(llama: Path, tmp_path: Path) -> None:
    lowrank.analyze(llama, output=tmp_path / "run", settings=NO_DATA, execution=STREAMED)
    lowrank.compress(None, 0.5, output=tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors.index.json").exists()


def test_a_place_behind_a_url(llama: Path, tmp_path: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for path in llama.iterdir():
        system.pipe_file(f"/models/llama/{path.name}", path.read_bytes())
    lowrank.compress("memory://models/llama", 0.5, output=tmp_path / "far", settings=NO_DATA)
    lowrank.compress(llama, 0.5, output=tmp_path / "near", settings=NO_DATA, execution=STREAMED)
    far, near = contents(tmp_path / "far" / "model"), contents(tmp_path / "near" / "model")
    assert {n: c for n, c in far.items()} == {n: c for n, c in near.items()}
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        lowrank.open_model("memory://models/none")
    with pytest.raises(UnsupportedModel, match="nosuch"):
        lowrank.open_model("nosuch://models/none")


@pytest.mark.parametrize(
    ("options", "named"),
    [({"heal": 1.0}, "heal"), ({"with_past": True}, "with-past"), ({"beside": "lora"}, "keep-lora")],
)
def test_what_takes_the_whole_model_is_refused(
    llama: Path, tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModel, match=f"--{named} needs the whole"):
        lowrank.compress(llama, 0.5, output=tmp_path / "run", settings=NO_DATA, execution=STREAMED, **options)


def damaged(llama: Path, folder: Path) -> Path:
    return Path(shutil.copytree(llama, folder))


def without_shard(folder: Path) -> None:
    (folder / sorted(set(index_of(folder).values()))[1]).unlink()


def leaving(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = "../model-00001-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut_short(folder: Path) -> None:
    path = folder / sorted(set(index_of(folder).values()))[0]
    os.truncate(path, path.stat().st_size - 100)


def claiming(folder: Path) -> None:
    path = folder / sorted(set(index_of(folder).values()))[0]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(n for n in header if n != "__metadata__")
    header[name]["shape"] = [10**9, 10**9]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def other_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))


def lacking(folder: Path) -> None:
    index = index_of(folder)
    name = next(n for n in index if n.endswith("q_proj.weight"))
    tensors = load_file(folder / index[name])
    del tensors[name]
    save_file(tensors, folder / index[name], {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (without_shard, "is not there"),
        (leaving, "no file of its folder"),
        (cut_short, "cannot be read as safetensors"),
        (claiming, "claims the shape"),
        (other_config, "but config.json says"),
        (lacking, "has no tensor"),
    ],
)
def test_damaged_checkpoints_are_refused_by_name(
    llama: Path, tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    folder = damaged(llama, tmp_path / "model")
    damage(folder)
    with pytest.raises(UnsupportedModel, match=told):
        lowrank.analyze(folder, output=tmp_path / "run", settings=NO_DATA, execution=STREAMED)


def test_a_result_that_lost_a_shard_is_not_loaded(llama: Path, tmp_path: Path) -> None:
    lowrank.compress(llama, 0.5, output=tmp_path / "run", settings=NO_DATA, execution=STREAMED)
    index = index_of(tmp_path / "run" / "model")
    name = next(n for n in index if n.endswith("left.weight"))
    (tmp_path / "run" / "model" / index[name]).unlink()
    with pytest.raises((ArtifactError, UnsupportedModel), match="is not there"):
        lowrank.load(tmp_path / "run")


def test_too_little_memory_is_said_before_anything_is_read(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"layers\.0.* takes .* MB to decompose"):
        lowrank.analyze(llama, settings=NO_DATA, execution=Execution(stream=True, memory=1000))


def test_a_changed_checkpoint_is_noticed(llama: Path, tmp_path: Path) -> None:
    folder = damaged(llama, tmp_path / "model")
    lowrank.analyze(folder, output=tmp_path / "run", settings=NO_DATA, execution=STREAMED)
    path = folder / sorted(set(index_of(folder).values()))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PlanMismatch, match="has changed since it was analysed"):
        lowrank.compress(None, 0.5, output=tmp_path / "run")


def test_columns_first_are_read_as_a_matrix(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "GPT2LMHeadModel", torch.float32)
    backend: Any = lowrank.open_model(folder, streamed=True)
    weight = next(w for w in backend.weights if w.name.endswith("c_fc.weight"))
    assert weight.view == View("cols rows")
    assert backend.read(weight.name).shape == weight.shape


def test_moments_of_a_block_are_in_the_memory_that_is_foreseen(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "used_memory", lambda: 0)
    data = Settings(calib="ids.npz")
    plain, calibrated = (
        foresee(str(llama), 0.5, llama.parent / "new", settings, execution=STREAMED) for settings in (NO_DATA, data)
    )
    backend = open_model(str(llama), streamed=True)
    block = [weight for weight in backend.weights if ".layers.1." in weight.name]
    moments = sum(min(weight.shape) ** 2 * 16 for weight in block)
    assert calibrated.memory >= moments + sum(weight.params * 4 for weight in block) > plain.memory / plain.jobs
