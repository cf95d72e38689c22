"""`compress_`: a live module, changed in place or not at all."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build
from builders import Block, Blocks, shape_spectra_, tiny_transformer, write_text, write_tokenizer
from torch import Tensor, nn

import lowrank
from lowrank.errors import CalibrationError, LowRankError, PatternError, UnsupportedModel
from lowrank.nn import LowRankLinear, PivotedLinear


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    return shape_spectra_(nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(32, 3)))


def samples(width: int = 32, count: int = 40, length: int = 5) -> Tensor:
    return torch.randn(count, length, width) * torch.logspace(0, -2, width)


def parts(model: nn.Module) -> dict[str, int]:
    """Which objects a module is made of."""
    named = (*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False))
    return {name: id(part) for name, part in named}


def distance(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def test_an_encoder_is_changed_in_place_and_nothing_else_of_it() -> None:
    model, x = encoder(), samples()
    head, norm = model[1], model.get_submodule("0.layers.0.norm1")
    head.weight.requires_grad_(False)
    fired: list[str] = []
    norm.register_forward_hook(lambda *_: fired.append("norm"))
    model.get_submodule("0.layers.1.self_attn").in_proj_weight.requires_grad_(False)
    wanted = model.eval()(x)
    model.train()
    fired.clear()
    state = torch.get_rng_state()

    done = lowrank.compress_(model, 0.6, calib=x)

    assert fired == [] and model.training and all(part.training for part in model.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert model[1] is head and model.get_submodule("0.layers.0.norm1") is norm
    assert not head.weight.requires_grad and norm.weight.requires_grad
    for name, parameter in model.named_parameters():
        if "layers.1.self_attn" in name and name.endswith("proj.weight") and "out_proj" not in name:
            assert not parameter.requires_grad, name
        if "layers.0.linear1" in name:
            assert parameter.requires_grad, name
    assert done.params_after == sum(p.numel() for p in model.parameters()) < done.params_before
    assert done.keep_ratio <= 0.6 and done.layers and "weights replaced" in str(done)
    assert distance(model.eval()(x), wanted) < 0.2
    assert fired == ["norm"]


def test_without_anything_to_gain_nothing_is_touched() -> None:
    model, x = encoder().eval(), samples()
    before, wanted = parts(model), model(x)
    done = lowrank.compress_(model, 1.0)
    assert not done.layers and parts(model) == before and torch.equal(model(x), wanted)


@pytest.mark.slow_but("gpt2")
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_models_of_transformers(kind: str) -> None:
    model, ids = tiny_transformer(kind), torch.randint(0, 64, (40, 9))
    wanted = model(ids)[0]
    done = lowrank.compress_(model, 0.6, calib={"input_ids": ids, "labels": ids}, refit=False)
    assert done.layers and distance(model(ids)[0], wanted) < 0.1
    if kind == "gpt2":
        assert model.lm_head.weight is model.transformer.wte.weight


def test_a_tie_stays_a_tie_and_a_shared_block_is_replaced_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = Block(16, 40)
            self.layers = nn.ModuleList([block, block, Block(16, 40)])
            self.layers[2].up.weight = block.up.weight

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    model: Any = shape_spectra_(Tied()).eval()
    x = samples(16)
    wanted = model(x)
    lowrank.compress_(model, 0.7)
    first, second, third = model.layers
    assert first is second and first is not third
    assert isinstance(first.up, LowRankLinear | PivotedLinear) and third.up.left.weight is first.up.left.weight
    assert distance(model(x), wanted) < 0.5


def test_patterns_targets_and_budgets_are_those_of_the_command_line() -> None:
    model = shape_spectra_(Blocks())
    done = lowrank.compress_(model, lowrank.Budget.error(0.2), include="layers.0.*")
    assert set(done.layers) <= {"layers.0.up.weight", "layers.0.down.weight"} and done.layers
    assert type(model.get_submodule("layers.1.up")) is nn.Linear
    assert any(skip.name == "layers.1.up.weight" for skip in done.skips)
    with pytest.raises(PatternError, match="nowhere"):
        lowrank.compress_(model, 0.5, include="nowhere.*")
    with pytest.raises(LowRankError, match=r"lowrank\.compress"):
        lowrank.compress_(model, lowrank.Budget.latency(0.5))


def test_an_error_leaves_the_module_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank.backends.torch import replace

    model, x = encoder().eval(), samples()
    before, wanted = parts(model), model(x)
    flags = model.get_submodule("0.layers.0").activation_relu_or_gelu
    fill, count = replace.fill_, [0]

    def failing(*arguments: Any) -> None:
        count[0] += 1
        if count[0] == 3:
            raise RuntimeError("no memory left")
        fill(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(replace, "fill_", failing)
        with pytest.raises(RuntimeError, match="no memory left"):
            lowrank.compress_(model, 0.5, calib=x)
    assert count[0] == 3 and parts(model) == before and torch.equal(model(x), wanted)
    assert model.get_submodule("0.layers.0").activation_relu_or_gelu == flags
    with torch.no_grad():
        model.get_submodule("0.layers.1").linear1.weight[0, 0] = float("nan")
    with pytest.raises(LowRankError, match="NaN"):
        lowrank.compress_(model, 0.5, calib=x)
    assert parts(model) == before


def test_what_is_no_module_or_cannot_be_one_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="not a model"):
        lowrank.compress_("model.pt", 0.5)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModel, match="compiled already"):
        lowrank.compress_(torch.compile(Blocks(), backend="eager"), 0.5)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModel, match="not in memory"), torch.device("meta"):
        lowrank.compress_(Blocks(), 0.5)


def test_it_trains_compiles_and_is_saved(tmp_path: Path) -> None:
    model, x = encoder(), samples()
    done = lowrank.compress_(model, 0.5, calib=x)
    optimizer, target = torch.optim.Adam(model.parameters(), 1e-2), torch.randn(40, 5, 3)
    losses = []
    for _ in range(15):
        loss = nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and all(p.grad is not None for p in model.parameters())
    model.eval()
    assert torch.allclose(torch.compile(model, backend="eager")(x), model(x), atol=1e-6)

    (tmp_path / "layers.json").write_text(json.dumps(dict(done.layers)))
    torch.save(model.state_dict(), tmp_path / "small.pt")
    again = lowrank.prepare_(encoder(), json.loads((tmp_path / "layers.json").read_text())).eval()
    again.load_state_dict(torch.load(tmp_path / "small.pt"))  # noqa: TID251 - what somebody's script does
    assert torch.equal(again(x), model(x))
    with pytest.raises(LowRankError, match="not of this Blocks"):
        lowrank.prepare_(Blocks(), done.layers)


class TwoInputs(nn.Module):
    """Reads a second input that only some callers name."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(16, 40)])

    def forward(self, x: Tensor, scale: Tensor, double: bool = False) -> Tensor:
        return self.layers[0](x * scale) * (2 if double else 1)


X = torch.linspace(-1, 1, 24 * 3 * 16).reshape(24, 3, 16).sin() * torch.logspace(0, -2, 16)
ONES = torch.ones(24, 1, 1)


@pytest.mark.parametrize(
    "calib",
    [
        pytest.param({"x": X, "scale": ONES}, id="dict"),
        pytest.param({"x": X.numpy(), "scale": ONES.numpy(), "labels": np.zeros(24)}, id="arrays with labels"),
        pytest.param([(X[:12], ONES[:12], "y"), (X[12:], ONES[12:], "y")], id="batches of more than it reads"),
        pytest.param(
            torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, ONES, torch.arange(24)), 8), id="loader"
        ),
        pytest.param(lambda model: [model(X[i : i + 8], scale=ONES[i : i + 8]) for i in (0, 8, 16)], id="function"),
    ],
)
def test_every_form_of_calibration_data_gives_the_same(calib: Any) -> None:
    model = shape_spectra_(TwoInputs())
    reference = copy.deepcopy(model)
    made = lowrank.compress_(model, 0.5, calib=calib)
    wanted = lowrank.compress_(reference, 0.5, calib={"x": X, "scale": ONES})
    assert [o.rank for o in made.plan.options] == [o.rank for o in wanted.plan.options]
    assert torch.allclose(model(X, ONES), reference(X, ONES), atol=1e-4)
    assert not any("no calibration data" in note for note in made.notes)


def _fails(model: nn.Module) -> None:
    raise ZeroDivisionError("in the loader")


@pytest.mark.parametrize(
    ("calib", "said"),
    [
        ([], "empty"),
        (3, "of the type int"),
        (["a sentence"], "of the type str"),
        ({"y": X}, "model reads x, scale"),
        (X, "does not fit"),
        ({"x": X, "scale": ONES, "double": [X]}, "is a list"),
        ({"x": X * float("nan"), "scale": ONES}, "NaN"),
        ([{"x": X, "scale": ONES}, {"x": X, "scale": ONES, "double": True}], "fed differently"),
        (_fails, "in the loader"),
        ({"x": X[..., :3], "scale": ONES}, "cannot be run"),
        ("nowhere.npz", "no nowhere.npz"),
    ],
)
def test_calibration_data_that_does_not_fit_is_explained(calib: Any, said: str) -> None:
    model = TwoInputs()
    before = parts(model)
    with pytest.raises(CalibrationError, match=said):
        lowrank.compress_(model, 0.5, calib=calib)
    assert parts(model) == before


def test_padding_that_a_mask_shows_is_cut_off() -> None:
    from lowrank.calibrate.user_batches import calibration_of

    class Backend:
        signature = None
        fed_with: Callable[..., Any] = lambda self, *_: self

    ids = np.arange(12).reshape(3, 4)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    feed = {"input_ids": ids, "attention_mask": mask}
    made = calibration_of(Backend(), [feed], None)  # type: ignore[arg-type]
    rows = [row.tolist() for fold in (made.fit, made.heldout) for each in fold for row in each["input_ids"]]
    assert sorted(rows) == [[0, 1], [4, 5, 6, 7], [8, 9]]
    odd = {"input_ids": ids, "attention_mask": mask[:, ::-1]}
    made = calibration_of(Backend(), [odd], None)  # type: ignore[arg-type]
    assert {each["input_ids"].shape[1] for each in (*made.fit, *made.heldout)} == {4}


@pytest.mark.slow
def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    text = write_text(tmp_path / "t.txt")
    model = tiny_transformer("bert")
    with pytest.raises(CalibrationError, match="tokenizer"):
        lowrank.compress_(model, 0.5, calib=text)
    done = lowrank.compress_(model, 0.5, calib=text, tokenizer=tmp_path, refit=False)
    assert done.layers


def transformers_in(kind: str) -> tuple[nn.Module, Any]:
    """A module, and the model of transformers in it."""
    model: Any = shape_spectra_(build(kind.removeprefix("inside-")))
    inside = kind.startswith("inside")
    return (nn.ModuleDict({"encoder": model, "head": nn.Linear(32, 3)}) if inside else model), model


def test_a_model_that_has_the_same_config_stays_dense(tmp_path: Path) -> None:
    """A student and its teacher are often built from one object."""
    model: Any = build("bert")
    teacher = type(model)(model.config).eval()
    ids = {"input_ids": torch.randint(0, 64, (2, 9))}
    lowrank.compress_(model, 0.5)
    assert model.config is not teacher.config and all(
        part.config is not teacher.config for part in model.modules() if hasattr(part, "config")
    )
    teacher.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(type(model).from_pretrained(tmp_path).eval()(**ids)[0], teacher(**ids)[0])


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "mixtral", "inside-bert"])
@pytest.mark.slow_but("bert", "inside-bert")
def test_save_pretrained_keeps_what_was_done_in_place(kind: str, tmp_path: Path) -> None:
    root, model = transformers_in(kind)
    ids = {"input_ids": torch.randint(0, 64, (2, 9))}
    done = lowrank.compress_(root, 0.5)
    wanted = model.eval()(**ids)[0].detach()
    model.save_pretrained(tmp_path / "small")
    again, info = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert done.layers and not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(again.eval()(**ids)[0], wanted)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())
    other_root, other = transformers_in(kind)
    lowrank.prepare_(other_root, json.loads(json.dumps(done.layers))).load_state_dict(root.state_dict())
    other.save_pretrained(tmp_path / "prepared")
    assert torch.equal(type(model).from_pretrained(tmp_path / "prepared").eval()(**ids)[0], wanted)
