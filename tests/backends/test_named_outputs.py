"""All outputs of a model, under its own names, each with its own kind."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from builders import OneByOne, write_text, write_tokenizer
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lowrank
from lowrank.backends import Opening, open_model
from lowrank.backends.base import signature_of
from lowrank.backends.torch.read_back import read_finished
from lowrank.backends.torch.results import named_tensors
from lowrank.calibrate.data import load_calibration
from lowrank.calibrate.judging_set import JudgingSet
from lowrank.calibrate.sensitivity import reference_of
from lowrank.core.distance import LITTLE, information_of
from lowrank.errors import ExportError
from lowrank.evaluate.judges import Judges
from lowrank.evaluate.parity import check_parity
from lowrank.pipeline.run.read import read_run

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 90,
    "max_position_embeddings": 40,
}


def bert(kind: str, **more: Any) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**SIZES, **more)).eval()


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 16, "num_heads": 2, "num_layers": 1, "d_ff": 48, "vocab_size": 90}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()


def marian() -> nn.Module:
    from transformers import MarianConfig, MarianMTModel

    sizes: dict[str, Any] = {"d_model": 32, "vocab_size": 90, "max_position_embeddings": 40, "pad_token_id": 0}
    sides = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in HALVES.items()}
    return MarianMTModel(MarianConfig(**sizes, **sides, decoder_start_token_id=0, eos_token_id=1)).eval()


HALVES = {"layers": 1, "attention_heads": 2, "ffn_dim": 48}


def encoder_decoder() -> nn.Module:
    from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

    sides = BertConfig(**SIZES), BertConfig(**SIZES, is_decoder=True, add_cross_attention=True)
    return EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(*sides)).eval()


def electra() -> nn.Module:
    from transformers import ElectraConfig, ElectraForPreTraining

    return ElectraForPreTraining(ElectraConfig(**SIZES, embedding_size=32)).eval()


def autoencoder() -> nn.Module:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sides = {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    decoder = {f"decoder_{key}": value for key, value in {**sides, "intermediate_size": 48}.items()}
    return ViTMAEForPreTraining(ViTMAEConfig(**sides, **decoder, image_size=32, patch_size=8)).eval()


def segmenter() -> nn.Module:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    text = {**SIZES, "projection_dim": 32, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    vision = {"image_size": 32, "patch_size": 8, "projection_dim": 32}
    vision |= {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    more: dict[str, Any] = {"extract_layers": [0], "reduce_dim": 16, "decoder_num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=32, decoder_intermediate_size=32, **more
    )
    return CLIPSegForImageSegmentation(config).eval()


def clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    text = {**SIZES, "projection_dim": 24, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    vision = {"image_size": 16, "patch_size": 8, "projection_dim": 24}
    vision |= {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()


def yolos() -> nn.Module:
    from transformers import YolosConfig, YolosForObjectDetection

    sizes = {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    picture: dict[str, Any] = {"image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 5, "num_labels": 4}
    return YolosForObjectDetection(YolosConfig(**sizes, **picture)).eval()


def bart(kind: str) -> nn.Module:
    import transformers

    sides = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in HALVES.items()}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    sizes: dict[str, Any] = {"d_model": 32, "vocab_size": 90, "max_position_embeddings": 40, "num_labels": 3}
    return getattr(transformers, kind)(transformers.BartConfig(**sizes, **sides, **tokens)).eval()


def xlnet() -> nn.Module:
    from transformers import XLNetConfig, XLNetForQuestionAnsweringSimple

    sizes: dict[str, Any] = {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 48, "vocab_size": 90}
    return XLNetForQuestionAnsweringSimple(XLNetConfig(**sizes)).eval()


PICTURES: dict[str, Any] = {"image_size": 32, "patch_size": 8}


def captions() -> nn.Module:
    from transformers import BertConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    body = {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    sides = ViTConfig(**body, **PICTURES), BertConfig(**SIZES, is_decoder=True, add_cross_attention=True)
    return VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(*sides)).eval()


def vilt() -> nn.Module:
    from transformers import ViltConfig, ViltForQuestionAnswering

    return ViltForQuestionAnswering(ViltConfig(**SIZES, **PICTURES, num_labels=5)).eval()


TRANSFORMERS = {
    "classes of a decoder": (
        lambda: bart("BartForSequenceClassification"),
        {"logits": "logits", "encoder_last_hidden_state": "values"},
    ),
    "answers of a decoder": (
        lambda: bart("BartForQuestionAnswering"),
        {"start_logits": "logits", "end_logits": "logits", "encoder_last_hidden_state": "values"},
    ),
    "several choices": (lambda: bert("BertForMultipleChoice"), {"logits": "logits"}),
    "any length": (xlnet, {"start_logits": "logits", "end_logits": "logits"}),
    "captions": (captions, {"logits": "logits", "encoder_last_hidden_state": "values"}),
    "text and image in one": (vilt, {"logits": "logits"}),
    "question answering": (
        lambda: bert("BertForQuestionAnswering"),
        {"start_logits": "logits", "end_logits": "logits"},
    ),
    "hidden states": (lambda: bert("BertModel"), {"last_hidden_state": "values", "pooler_output": "embedding"}),
    "two heads": (
        lambda: bert("BertForPreTraining"),
        {"prediction_logits": "logits", "seq_relationship_logits": "logits"},
    ),
    "plain tuples": (
        lambda: bert("BertForQuestionAnswering", return_dict=False),
        {"start_logits": "logits", "end_logits": "logits"},
    ),
    "numbers": (
        lambda: bert("BertForSequenceClassification", num_labels=3, problem_type="regression"),
        {"logits": "values"},
    ),
    "many labels": (
        lambda: bert("BertForSequenceClassification", num_labels=3, problem_type="multi_label_classification"),
        {"logits": "values"},
    ),
    "a score for each token": (electra, {"logits": "values"}),
    "pixels": (autoencoder, {"logits": "values", "mask": "values", "ids_restore": "choices"}),
    "a map": (
        segmenter,
        {"logits": "values", "conditional_embeddings": "embedding", "pooled_output": "values"},
    ),
    "translation": (marian, {"logits": "logits", "encoder_last_hidden_state": "values"}),
    "two models": (encoder_decoder, {"logits": "logits", "encoder_last_hidden_state": "values"}),
    "encoder and decoder": (t5, {"logits": "logits", "encoder_last_hidden_state": "values"}),
    "towers": (
        clip,
        {
            "logits_per_image": "logits",
            "logits_per_text": "logits",
            "text_embeds": "embedding",
            "image_embeds": "embedding",
        },
    ),
    "detector": (yolos, {"logits": "logits", "pred_boxes": "values", "last_hidden_state": "values"}),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_outputs_of_transformers_are_those_of_the_class(name: str) -> None:
    build, expected = TRANSFORMERS[name]
    module = build()
    dense = open_model(module)
    signature = signature_of(dense)
    assert {output.name: output.kind for output in signature.outputs} == expected
    assert list(signature.output_names) == list(expected)
    feed = signature.example(2, 7)
    with torch.no_grad():
        inputs = {key: torch.from_numpy(value) for key, value in feed.items()}
        theirs: Any = module(**inputs, return_dict=True)
    for key, ours in dense.outputs(feed).items():
        np.testing.assert_allclose(ours, theirs[key].numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_model_that_judges_what_it_reads_takes_no_decoder_ids(tmp_path: Path) -> None:
    dense = open_model(bart("BartForSequenceClassification"))
    signature = signature_of(dense)
    assert signature.names == ("input_ids", "attention_mask")
    ids = signature.example(3, 7)["input_ids"]
    assert (ids[:, -1] == 2).all() and (ids == 2).sum() == 3
    dense.write_onnx(tmp_path / "m.onnx")
    assert set(check_parity(dense, tmp_path / "m.onnx").outputs or ()) == {"logits", "encoder_last_hidden_state"}


@pytest.mark.slow
def test_choices_are_read_as_text(tmp_path: Path) -> None:
    bert("BertForMultipleChoice", num_labels=2).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    dense = open_model(tmp_path / "model")
    calibration = load_calibration(dense, write_text(tmp_path / "text.txt", 60))
    assert calibration is not None
    feed = calibration.fit[0]
    assert all(values.ndim == 3 and values.shape[1] == 1 for values in feed.values())
    assert dense.outputs(feed)["logits"].shape == (len(feed["input_ids"]), 1)
    dense.write_onnx(tmp_path / "m.onnx")
    assert check_parity(dense, tmp_path / "m.onnx").max_abs < 1e-4


class Writer(nn.Module):
    """Scores of the next token, as trainers' own code gives them: of the last position alone, beside no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 40)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        return self.head(self.body(self.table(idx)).relu()[:, [-1]]), targets


def test_scores_of_a_vocabulary_are_logits_whatever_the_tokens_are_called() -> None:
    (output,) = signature_of(open_model(Writer().eval())).outputs
    assert output.name == "output" and output.kind == "logits"


class Pair(NamedTuple):
    logits: Tensor
    pred_boxes: Tensor


@dataclass
class Both:
    boxes: Tensor
    score_logits: Tensor
    note: str = "no tensor"


class Heads(nn.Module):
    """Two heads on a body, in any container."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.body, self.head, self.box = nn.Linear(12, 16), nn.Linear(16, 5), nn.Linear(16, 4)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x).relu()
        return self.form(self.head(hidden), self.box(hidden))


CONTAINERS = {
    "tuple": (lambda a, b: (a, b), ["output_0", "output_1"]),
    "list": (lambda a, b: [a, b], ["output_0", "output_1"]),
    "alone in a tuple": (lambda a, b: (a,), ["output"]),
    "tensor": (lambda a, b: a, ["output"]),
    "dict": (lambda a, b: {"logits": a, "pred_boxes": b}, ["logits", "pred_boxes"]),
    "ordered": (lambda a, b: OrderedDict(pred_boxes=b, logits=a), ["pred_boxes", "logits"]),
    "named tuple": (Pair, ["logits", "pred_boxes"]),
    "dataclass": (lambda a, b: Both(b, a), ["boxes", "score_logits"]),
    "nested": (lambda a, b: {"out": (a, {"boxes": b}), "none": None}, ["out.0", "out.1.boxes"]),
    "with nothing in it": (lambda a, b: (a, None), ["output"]),
    "with a scalar": (lambda a, b: (a, a.mean()), ["output_0", "output_1"]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_outputs_of_a_plain_module_are_named(name: str) -> None:
    form, names = CONTAINERS[name]
    torch.manual_seed(0)
    dense = open_model(Heads(form).eval())
    assert list(signature_of(dense).output_names) == names
    feeds = [signature_of(dense).example(6, 3, seed) for seed in range(2)]
    assert reference_of(dense, feeds, [dense.outputs(feed) for feed in feeds]).loss(
        [dense.outputs(feed) for feed in feeds]
    ) == pytest.approx(0, abs=1e-9)
    quality = Judges(dense, [JudgingSet("random", tuple(feeds))]).quality_of(dense)
    assert quality.fidelity == pytest.approx(1)


@pytest.mark.slow
def test_what_no_graph_has_is_in_the_report(tmp_path: Path) -> None:
    report = lowrank.compress(clip(), 0.9, output=tmp_path, latency=False)
    assert sum("not in the graph: text_model_output, vision_model_output" in note for note in report.notes) == 1


def test_divergence_is_never_less_than_nothing() -> None:
    dense = open_model(t5())
    rng, feeds = np.random.default_rng(0), tuple(signature_of(dense).example(4, 9, seed) for seed in range(4))

    class Nearly(OneByOne):
        def outputs(self, feed: Any) -> dict[str, Any]:
            return {
                k: v * (1 + 1e-7 * rng.standard_normal(v.shape)).astype(v.dtype) for k, v in dense.outputs(feed).items()
            }

    for feed in feeds:
        quality = Judges(dense, [JudgingSet("random", (feed,))]).quality_of(Nearly())
        (row,) = quality.sets or ()
        (found,) = (each.kl for each in row.outputs or () if each.name == "logits")
        assert found is not None and found >= 0


def test_caches_are_no_outputs() -> None:
    found = named_tensors(
        {"logits": torch.zeros(1), "past_key_values": torch.zeros(1), "present.0.key": torch.zeros(1)}
    )
    assert list(found.tensors) == ["logits"] and found.left_out == []


class Spoiled(OneByOne):
    """The dense model, but for one output."""

    def __init__(self, dense: Any, name: str) -> None:
        self.dense, self.name = dense, name

    def outputs(self, feed: Any) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        whole = self.dense.outputs(feed)
        return {k: rng.standard_normal(v.shape) if k == self.name else v for k, v in whole.items()}

    def run(self, feed: Any) -> Any:
        return self.outputs(feed)[self.name]


@pytest.mark.parametrize(
    "name", ["question answering", "two heads", "encoder and decoder", "detector", "a score for each token"]
)
def test_every_output_counts(name: str) -> None:
    dense = open_model(TRANSFORMERS[name][0]())
    signature = signature_of(dense)
    feeds = [signature.example(6, 7, seed) for seed in range(2)]
    reference = reference_of(dense, feeds, [dense.outputs(feed) for feed in feeds])
    judges = Judges(dense, [JudgingSet("random", tuple(feeds))])
    for output in signature.outputs:
        spoiled = Spoiled(dense, output.name)
        quality = judges.quality_of(spoiled)
        assert quality.kind == output.kind and (quality.fidelity or 0) < 0.9 and quality.sets
        if len(signature.outputs) > 1:
            assert quality.output == output.name and output.name in quality.headline
            assert {row.name for row in quality.sets[0].outputs or ()} == set(signature.output_names)
        # A share of the whole that is lost, whatever the units are.
        assert reference.loss([spoiled.outputs(feed) for feed in feeds]) > 0.1


def test_padding_is_no_place_for_an_answer() -> None:
    dense = open_model(bert("BertForQuestionAnswering"))
    signature = signature_of(dense)
    feeds = [signature.example(4, 8, seed, padded=True) for seed in range(2)]

    class Beyond(Spoiled):
        def outputs(self, feed: Any) -> dict[str, Any]:
            padding = feed["attention_mask"] == 0
            return {k: np.where(padding, 1e3, v).astype(np.float32) for k, v in self.dense.outputs(feed).items()}

    spoiled = Beyond(dense, "start_logits")
    assert Judges(dense, [JudgingSet("padded", tuple(feeds))]).quality_of(spoiled).fidelity == 1
    reference = reference_of(dense, feeds, [dense.outputs(feed) for feed in feeds])
    assert reference.loss([spoiled.outputs(feed) for feed in feeds]) == pytest.approx(0, abs=1e-9)


def test_what_is_pooled_otherwise_is_kept_and_not_judged() -> None:
    dense = open_model(bert("BertModel"))
    pooled = signature_of(dense).pooled_by("mean")
    assert [output.name for output in pooled.outputs] == ["last_hidden_state", "pooler_output"]
    assert [(output.name, output.kind) for output in pooled.compared] == [("last_hidden_state", "embedding")]


def test_information_is_that_of_the_classes() -> None:
    sure = np.log(np.eye(4) + 1e-9)
    assert information_of([sure], [None]) == pytest.approx(np.log(4), abs=1e-4)
    assert information_of([np.zeros((3, 4))], [None]) == LITTLE
    # Classes that differ in number are compared with the even distribution.
    expected = (4 * np.log(4) + 2 * np.log(2)) / 6
    assert information_of([sure, np.log(np.eye(2) + 1e-9)], [None, None]) == pytest.approx(expected, abs=1e-4)


def test_scores_of_tokens_are_those_of_real_tokens() -> None:
    dense = open_model(electra())
    signature = signature_of(dense)
    (output,) = signature.outputs
    assert output.over_positions and output.kind == "values"
    feeds = [signature.example(4, 8, seed, padded=True) for seed in range(2)]
    whole = [dense.outputs(feed) for feed in feeds]
    reference = reference_of(dense, feeds, whole)
    beyond = [
        {"logits": np.where(feed["attention_mask"] == 0, 1e3, y["logits"])}
        for feed, y in zip(feeds, whole, strict=True)
    ]
    assert reference.loss(beyond) == pytest.approx(0, abs=1e-9)
    # The mean of the real tokens' scores explains nothing of them.
    rows = np.concatenate([y["logits"][feed["attention_mask"] == 1] for feed, y in zip(feeds, whole, strict=True)])
    assert reference.loss([{"logits": np.full_like(y["logits"], rows.mean())} for y in whole]) == pytest.approx(1)


def test_noise_that_a_model_would_draw_is_drawn_once(tmp_path: Path) -> None:
    dense = open_model(autoencoder())
    assert signature_of(dense).names == ("pixel_values", "noise")
    pixels = np.random.default_rng(0).standard_normal((10, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "in.npz", pixel_values=pixels)
    found = load_calibration(dense, tmp_path / "in.npz")
    assert found is not None and {feed["noise"].shape[1] for feed in (*found.fit, *found.heldout)} == {16}
    again = load_calibration(dense, tmp_path / "in.npz")
    assert again is not None and again.provenance["hash"] == found.provenance["hash"]
    feed = found.fit[0]
    np.testing.assert_array_equal(dense.outputs(feed)["mask"], dense.outputs(feed)["mask"])


class Chooses(nn.Module):
    """A classifier that gives the class alone, or its scores, too."""

    def __init__(self, scores: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.scores = nn.Linear(12, 16), nn.Linear(16, 5), scores

    def forward(self, x: Tensor) -> Any:
        logits = self.head(self.body(x).relu())
        return {"label": logits.argmax(-1), **({"logits": logits} if self.scores else {})}


@pytest.mark.parametrize("scores", [True, False])
def test_choices_are_the_same_or_not(scores: bool) -> None:
    dense = open_model(Chooses(scores).eval())
    signature = signature_of(dense)
    assert signature.outputs[0].kind == "choices"
    feed = signature.example(8, 1)
    judges = Judges(dense, [JudgingSet("random", (feed,))])
    right = dense.outputs(feed)["label"]
    assert right.shape == (8,) and judges.quality_of(dense).fidelity == 1

    class Wrong(Spoiled):
        def outputs(self, feed: Any) -> dict[str, Any]:
            return {**self.dense.outputs(feed), "label": np.where(np.arange(8) < 2, right + 1, right)}

    wrong = Wrong(dense, "label")
    quality = judges.quality_of(wrong)
    assert quality.kind == "choices" and quality.fidelity == 0.75 and quality.agreement == 0.75
    # Of two outputs each is half of what is lost.
    reference = reference_of(dense, [feed], [dense.outputs(feed)])
    assert reference.loss([wrong.outputs(feed)]) == pytest.approx(0.25 / len(signature.outputs))
    names = [weight.name for weight in dense.weights]
    assert set(dense.curvature([feed], names)) == (set(names) if scores else set())


def test_outputs_of_weights_that_nobody_trained_are_not_judged(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM, BertModel

    torch.manual_seed(0)
    whole: Any = bert("BertModel")
    with torch.no_grad():
        for layer in whole.modules():
            if isinstance(layer, nn.Linear):
                layer.bias.normal_()
    assert isinstance(whole, BertModel)
    whole.save_pretrained(tmp_path / "trained")
    assert [y.unused for y in signature_of(open_model(tmp_path / "trained")).outputs] == ["", ""]
    with torch.no_grad():
        whole.pooler.dense.bias.zero_()
    whole.save_pretrained(tmp_path / "zero")
    masked = BertForMaskedLM(whole.config)
    masked.bert.load_state_dict(whole.state_dict(), strict=False)
    masked.save_pretrained(tmp_path / "lacking")
    config = (tmp_path / "zero" / "config.json").read_text()
    (tmp_path / "lacking" / "config.json").write_text(config)
    for folder in ("zero", "lacking"):
        signature = signature_of(open_model(tmp_path / folder))
        assert signature.output_names == ("last_hidden_state", "pooler_output")
        assert "pooler.dense.weight" in signature.outputs[1].unused
        assert [output.name for output in signature.compared] == ["last_hidden_state"]


@pytest.mark.parametrize("trained", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_finished_run_is_judged_by_the_outputs_that_its_model_was(trained: bool, tmp_path: Path) -> None:
    """A refit gives layers other biases, which tell nothing of what was trained."""
    whole: Any = bert("BertModel")
    if trained:
        for layer in whole.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.bias)
        whole.pooler.dense.bias.data.zero_()
    whole.save_pretrained(tmp_path / "model")
    lowrank.compress(tmp_path / "model", 0.5, output=tmp_path / "run", latency=False)
    for folder in tmp_path.glob("run/model"):
        state = load_file(folder / "model.safetensors")
        save_file(
            {n: t + 0.1 if n.endswith("query.bias") else t for n, t in state.items()}, folder / "model.safetensors"
        )
    analysis, _, _ = read_run(tmp_path / "run")
    finished, _ = read_finished(tmp_path / "run/model", analysis, Opening(), None)
    names = [["last_hidden_state"], ["last_hidden_state", "pooler_output"]][not trained]
    for backend in (open_model(tmp_path / "model"), finished):
        assert [output.name for output in signature_of(backend).compared] == names


def one_graph(path: Path, nodes: list[Any], outputs: dict[str, list[Any]], **numbers: Any) -> Path:
    """A graph that reads tokens of a vocabulary of 20, and embeds them in 6 numbers."""
    rng = np.random.default_rng(0)
    numbers = {"table": rng.standard_normal((20, 6)), **numbers}
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["h"]), *nodes],
        "one",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(v, np.float32), name) for name, v in numbers.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def head(columns: int, output: str = "y") -> tuple[list[Any], dict[str, Any]]:
    weight = np.random.default_rng(1).standard_normal((6, columns))
    return [helper.make_node("MatMul", ["h", "w"], [output])], {"w": weight}


def test_a_graph_is_known_by_shapes_numbers_and_its_config(tmp_path: Path) -> None:
    nodes, numbers = head(20)
    path = one_graph(tmp_path / "words.onnx", nodes, {"y": ["batch", "sequence", 20]}, **numbers)
    assert signature_of(open_model(path)).output_kind == "logits"
    nodes, numbers = head(7)
    path = one_graph(tmp_path / "tags.onnx", nodes, {"y": ["batch", "sequence", 7]}, **numbers)
    assert signature_of(open_model(path)).output_kind == "values"
    (tmp_path / "config.json").write_text('{"id2label": {"0":"a","1":"b","2":"c","3":"d","4":"e","5":"f","6":"g"}}')
    assert signature_of(open_model(path)).output_kind == "logits"
    nodes = [
        helper.make_node("GlobalAveragePool", ["t"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("LpNormalization", ["f"], ["y"], axis=1, p=2),
    ]
    turned = helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1])
    path = one_graph(tmp_path / "unit.onnx", [turned, *nodes], {"y": ["batch", 6]})
    assert signature_of(open_model(path)).output_kind == "embedding"


def test_a_graph_that_answers_questions_is_known_by_its_config(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).standard_normal((6, 2))
    nodes = [
        helper.make_node("MatMul", ["h", "w"], ["both"]),
        helper.make_node("Split", ["both"], ["a", "b"], axis=2, num_outputs=2),
        helper.make_node("Flatten", ["a"], ["first"]),
        helper.make_node("Flatten", ["b"], ["last"]),
    ]
    outputs = {name: ["batch", "sequence"] for name in ("first", "last")}
    path = one_graph(tmp_path / "qa.onnx", nodes, outputs, w=weight)
    assert [output.kind for output in signature_of(open_model(path)).outputs] == ["values", "values"]
    assert all(output.over_positions for output in signature_of(open_model(path)).outputs)
    (tmp_path / "config.json").write_text('{"architectures": ["BertForQuestionAnswering"]}')
    found = signature_of(open_model(path)).outputs
    assert [(output.kind, output.over_positions) for output in found] == [("logits", True)] * 2


@pytest.mark.slow
def test_a_graph_with_a_cache_has_all_outputs(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2DoubleHeadsModel

    from lowrank.evaluate.generation import check_generation

    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=90, n_positions=40)
    dense = open_model(GPT2DoubleHeadsModel(config).eval())
    names = list(signature_of(dense).output_names)
    assert names == ["logits", "mc_logits"]
    dense.write_with_past(tmp_path / "past.onnx")
    given = [output.name for output in onnx.load(tmp_path / "past.onnx").graph.output]
    assert given == [*names, "present.0.key", "present.0.value"]
    check_generation(dense, tmp_path / "past.onnx")


def two_outputs(path: Path, scale: float = 1.0) -> Path:
    rng = np.random.default_rng(0)
    numbers = {"w": rng.standard_normal((12, 16)), "a": rng.standard_normal((16, 5)), "b": scale * np.ones((16, 4))}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("MatMul", ["h", "a"], ["logits"]),
            helper.make_node("MatMul", ["h", "b"], ["pred_boxes"]),
            helper.make_node("ArgMax", ["logits"], ["chosen"], axis=1),
        ],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 12])],
        [
            helper.make_tensor_value_info("pred_boxes", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5]),
            helper.make_tensor_value_info("chosen", TensorProto.INT64, ["batch", 1]),
        ],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def test_a_graph_has_all_its_outputs_and_each_is_compared(tmp_path: Path) -> None:
    dense = open_model(two_outputs(tmp_path / "m.onnx"))
    signature = signature_of(dense)
    assert [(output.name, output.kind) for output in signature.outputs] == [
        ("pred_boxes", "values"),
        ("logits", "logits"),
        ("chosen", "choices"),
    ]
    assert signature.output == "logits"
    dense.write_onnx(tmp_path / "again.onnx")
    parity = check_parity(dense, tmp_path / "again.onnx")
    assert parity.outputs is not None and list(parity.outputs) == ["pred_boxes", "logits", "chosen"]
    with pytest.raises(ExportError, match="in pred_boxes by"):
        check_parity(dense, two_outputs(tmp_path / "other.onnx", scale=2))
    other = open_model(bert("BertForQuestionAnswering"))
    with pytest.raises(ExportError, match="lacks the model's outputs start_logits, end_logits"):
        check_parity(other, tmp_path / "again.onnx")


def test_one_output_of_two_can_be_asked_for() -> None:
    dense = open_model(Heads(lambda a, b: {"logits": a, "pred_boxes": b}).eval())
    signature = signature_of(dense)
    only = dense.fed_with(replace(signature, outputs=signature.outputs[1:]))
    assert list(only.outputs(signature.example(2, 3))) == ["pred_boxes"]
