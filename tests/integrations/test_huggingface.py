"""transformers loads what was compressed, saves it, and loads it again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from architectures import ARCHITECTURES, build, with_biases
from builders import tiny_bert_folder
from checkpoints import NO_DATA, STREAMED, checkpoint
from compressed import compressed, of_structure, outputs, saved_factors

import lowrank
from lowrank.backends import open_model
from lowrank.errors import ArtifactError, LowRankError, UnsupportedModel

ROOT = Path(__file__).parents[2]
OF_TRANSFORMERS = [name for name in ARCHITECTURES if name not in ("encoder", "mingpt")]


@pytest.mark.parametrize("targets", ["projections", "all"])
@pytest.mark.parametrize("name", OF_TRANSFORMERS)
@pytest.mark.slow_but("bert-projections", "gpt2-all", "mixtral-projections", "vit-all")
def test_from_pretrained_gives_what_load_gives(name: str, targets: str, tmp_path: Path) -> None:
    small, folder = compressed(build(name), tmp_path, targets=("conv",) if name == "resnet" else (targets,))
    kind: Any = type(small.module)
    loaded, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {str(type(part)) for part in loaded.modules()} == {str(type(part)) for part in small.module.modules()}
    wanted = outputs(small, small.module)
    assert np.array_equal(outputs(small, lowrank.load(tmp_path)), wanted)  # type: ignore[arg-type]
    assert np.array_equal(outputs(small, loaded), wanted)
    for place, model in {"again": loaded, "loaded": lowrank.load(tmp_path)}.items():
        model.save_pretrained(tmp_path / place)  # type: ignore[union-attr]
        second = kind.from_pretrained(tmp_path / place)
        assert np.array_equal(outputs(small, second), wanted)
        assert len(list(second.parameters())) == len(list(small.module.parameters())), "what was tied is tied"
        assert np.array_equal(outputs(small, lowrank.load(tmp_path / place)), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("structure", ["two_factor", "pivoted", "shared", "product", "neurons"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_every_structure_comes_back(name: str, structure: str, tmp_path: Path) -> None:
    small, folder = of_structure(with_biases(name), tmp_path, structure)
    record = json.loads((folder / "lowrank.json").read_text())["replaced"]
    assert structure in {entry["structure"] for entry in record.values()}
    kind: Any = type(small.module)
    kind.from_pretrained(folder).save_pretrained(tmp_path / "again")
    loaded = kind.from_pretrained(tmp_path / "again")
    assert np.array_equal(outputs(small, loaded), outputs(small, small.module))
    assert len(list(loaded.parameters())) == len(list(small.module.parameters()))


@pytest.mark.parametrize("first", ["lowrank", "transformers", "transformers.quantizers.auto"])
@pytest.mark.slow_but("lowrank")
def test_the_order_of_imports_does_not_matter(first: str) -> None:
    code = (
        f"import sys, {first}, lowrank\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        f"assert '{first}' != 'lowrank' or not heavy, heavy\n"
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as known\n"
        "assert known['lowrank'].__name__ == 'LowRankQuantizer'\n"
        "import importlib, lowrank.integrations.hook as hook\n"
        "hook.register_when_imported()\n"
        "assert not [f for f in sys.meta_path if isinstance(f, hook._Finder)]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_without_lowrank_loading_fails_with_a_sentence(tmp_path: Path) -> None:
    small, folder = compressed(build("bert"), tmp_path)
    type(small.module).from_pretrained(folder).save_pretrained(tmp_path / "again")  # type: ignore[operator]
    code = (
        "import sys, transformers\n"
        "for folder in sys.argv[1:]:\n"
        "    try:\n"
        "        transformers.AutoModel.from_pretrained(folder)\n"
        "    except ValueError as error:\n"
        "        assert 'import lowrank' in str(error), error\n"
        "    else:\n"
        "        raise SystemExit('it was loaded')\n"
        "assert 'lowrank' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, folder, tmp_path / "again"], check=True, cwd=tmp_path)


def test_blocks_of_earlier_versions_load_and_other_methods_are_left_alone(tmp_path: Path) -> None:
    from transformers import EetqConfig
    from transformers.quantizers.auto import AutoQuantizationConfig

    small, folder = compressed(build("bert"), tmp_path)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    block = content["quantization_config"]
    del block["weights"]
    path.write_text(json.dumps({**content, "quantization_config": {**block, "quant_method": "lowrank"}}))
    loaded = type(small.module).from_pretrained(folder)  # type: ignore[operator]
    assert np.array_equal(outputs(small, loaded), outputs(small, small.module))
    other = AutoQuantizationConfig.from_dict({"quant_method": "eetq", "weights": "int8"})
    assert isinstance(other, EetqConfig) and other.weights == "int8"


def test_other_heads_and_pipelines(tmp_path: Path) -> None:
    """A model without a head is read from one with, and the other way round, and a pipeline finds it all."""
    saved_factors(tiny_bert_folder(tmp_path / "dense", head="classes"), tmp_path / "run")
    given = {"input_ids": torch.arange(4, 12)[None]}
    whole: Any = lowrank.load(tmp_path / "run")
    plain = transformers.AutoModel.from_pretrained(tmp_path / "run/model")
    assert type(plain).__name__ == "BertModel"
    with torch.no_grad():
        assert torch.equal(whole.bert(**given)[0], plain(**given)[0])
    plain.save_pretrained(tmp_path / "plain")
    again, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "plain", output_loading_info=True
    )
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    with torch.no_grad():
        assert torch.equal(again.bert(**given)[0], plain(**given)[0])
    classify: Any = transformers.pipeline("text-classification", model=str(tmp_path / "run/model"), device="cpu")
    tokens = classify.tokenizer("the cat sat", return_tensors="pt")
    with torch.no_grad():
        wanted = whole(**tokens).logits.softmax(-1).max()
    assert classify("the cat sat")[0]["score"] == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "BertModel"])
def test_what_was_streamed_loads_too(kind: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "dense", kind, torch.float32)
    lowrank.compress(folder, 0.5, output=tmp_path / "run", settings=NO_DATA, execution=STREAMED)
    assert len(list((tmp_path / "run/model").glob("*.safetensors"))) > 1
    wanted: Any = lowrank.load(tmp_path / "run")
    loaded = type(wanted).from_pretrained(tmp_path / "run/model")
    loaded.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    given = {"input_ids": torch.arange(4, 12)[None]}
    with torch.no_grad():
        for model in (loaded, type(wanted).from_pretrained(tmp_path / "again"), lowrank.load(tmp_path / "again")):
            assert torch.equal(model(**given)[0], wanted(**given)[0])  # type: ignore[operator]


def test_devices_types_and_compiling(tmp_path: Path) -> None:
    small, folder = compressed(build("llama"), tmp_path)
    kind: Any = type(small.module)
    wanted = outputs(small, small.module)
    for where in ("cpu", "auto", {"": "cpu"}):
        assert np.array_equal(outputs(small, kind.from_pretrained(folder, device_map=where)), wanted)
    half = kind.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert np.abs(outputs(small, half) - wanted).max() < 0.05 * np.abs(wanted).max()
    half.save_pretrained(tmp_path / "half")
    assert kind.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert kind.from_pretrained(folder).half().float().dtype == torch.float32
    compiled: Any = torch.compile(kind.from_pretrained(folder), backend="eager", fullgraph=True)
    assert np.allclose(outputs(small, compiled), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_peft_puts_adapters_on_it_and_merges_them(name: str, tmp_path: Path) -> None:
    import peft

    small, folder = of_structure(with_biases(name), tmp_path, "two_factor")
    kind: Any = type(small.module)
    wanted = outputs(small, small.module)
    # Adapters on a factored layer as a whole, on one of its factors, and on all layers, but then not on both.
    for targets in (["query", "dense", "c_fc"], ["left"], "all-linear"):
        inner = ["left", "right"] if targets == "all-linear" else None
        config = peft.LoraConfig(r=2, target_modules=targets, exclude_modules=inner, init_lora_weights=False)
        model: Any = peft.get_peft_model(kind.from_pretrained(folder), config)
        model.eval()
        adapted = outputs(small, model)
        assert np.abs(adapted - wanted).max() > 1e-3 * np.abs(wanted).max()
        with model.disable_adapter():
            assert np.array_equal(outputs(small, model), wanted)
        model.save_pretrained(tmp_path / "adapter")
        read: Any = peft.PeftModel.from_pretrained(kind.from_pretrained(folder), tmp_path / "adapter")
        assert np.allclose(outputs(small, read.eval()), adapted, atol=1e-6)
        merged = model.merge_and_unload()
        assert np.allclose(outputs(small, merged), adapted, atol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        assert np.array_equal(outputs(small, kind.from_pretrained(tmp_path / "merged")), outputs(small, merged))


def test_pivots_do_not_lose_an_adapter_in_silence(tmp_path: Path) -> None:
    import peft

    small, folder = of_structure(with_biases("bert"), tmp_path, "pivoted")
    for targets, merges in ((["query"], False), (["left", "right"], True)):
        model: Any = peft.get_peft_model(
            type(small.module).from_pretrained(folder),  # type: ignore[attr-defined]
            peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False),
        )
        adapted = outputs(small, model.eval())
        if merges:
            assert np.allclose(outputs(small, model.merge_and_unload()), adapted, atol=1e-4)
        else:
            with pytest.raises(LowRankError, match="two_factor"):
                model.merge_and_unload()


@pytest.mark.parametrize("adapter", [False, True])
def test_the_trainer_trains_it(adapter: bool, tmp_path: Path) -> None:
    saved_factors(tiny_bert_folder(tmp_path / "dense", head="classes"), tmp_path / "run")
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model")
    if adapter:
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    samples = [{"input_ids": torch.randint(4, 24, (6,)), "labels": i % 2} for i in range(8)]
    options = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none"
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = transformers.Trainer(model, options, train_dataset=samples)
    trainer.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p.cpu(), before[name])}
    assert any("lora_" in name if adapter else "query.left" in name for name in changed)
    trainer.save_model(str(tmp_path / "trained"))
    if not adapter:
        read = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained")
        model.eval()
        given = {"input_ids": torch.arange(4, 12)[None]}
        assert torch.equal(read(**given).logits, model(**given).logits)


def test_it_is_not_compressed_twice_and_says_what_is_wrong(tmp_path: Path) -> None:
    small, folder = compressed(build("bert"), tmp_path)
    kind: Any = type(small.module)
    kind.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for place in (folder, tmp_path / "again"):
        with pytest.raises(UnsupportedModel, match="compressed already"):
            open_model(place)
    # What an older version wrote has no block.
    config = json.loads((folder / "config.json").read_text())
    block = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    assert np.array_equal(outputs(small, lowrank.load(folder)), outputs(small, small.module))  # type: ignore[arg-type]
    huge = {name: {**entry, "rank": 1 << 40, "shape": [1 << 40] * 2} for name, entry in block["replaced"].items()}
    spoilt: dict[str, dict[str, Any]] = {
        "schema": {**block, "schema": "lowrank.model/9.0"},
        "does not describe": {**block, "replaced": {"a": {"layers": ["encoder"]}}},
        "none of the": {**block, "replaced": {"a": {"layers": ["nowhere"]}}},
        "at most": {**block, "replaced": huge},
    }
    for message, wrong in spoilt.items():
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": wrong}))
        with pytest.raises(ArtifactError, match=message):
            kind.from_pretrained(folder)
