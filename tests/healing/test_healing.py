"""Healing on small random models of every architecture: laws, repetition, interruption, faults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, build
from builders import two_factors
from torch import nn

from lowrank.backends import open_model
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.module import ModuleBackend
from lowrank.calibrate.sensitivity import reference_of
from lowrank.core.rounding.formats import FORMATS
from lowrank.errors import HealingError
from lowrank.healing.blocks import BlockFit
from lowrank.healing.checkpoint import Checkpoint
from lowrank.healing.clock import Span, WorkLimit
from lowrank.healing.distill import Samples, mixed, steps_in_turn
from lowrank.healing.grids import grids_in
from lowrank.healing.optimizer import Optimizer, add_gradients_, snapshot
from lowrank.healing.phases import Healing
from lowrank.healing.preparation import prepare, trainable
from lowrank.healing.rounding import round_
from lowrank.healing.training import Training


def cut(name: str, share: float = 0.25) -> tuple[ModuleBackend, ModuleBackend, list[Feed]]:
    """A dense model, one whose projections keep a quarter of their rank, and batches."""
    dense = open_model(build(name))
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    chosen = [w for w in dense.weights if w.is_linear and w.role == "projection"] or list(dense.weights)
    made = {w.name: two_factors(dense.read(w.name), max(1, int(share * w.full_rank))) for w in chosen if w.stack == 1}
    feeds = [dense.signature.example(8, 6, seed) for seed in range(6)]
    return dense, dense.rewrite(made), feeds


def split(feeds: Sequence[Feed]) -> Samples:
    """Four batches to learn from, and the others to be judged by."""
    return Samples(feeds[:4], feeds[4:])


def healing(
    name: str, steps: int = 60, checkpoint: Checkpoint | None = None, dtype: str | None = None, **more: Any
) -> tuple[Healing, ModuleBackend]:
    dense, small, feeds = cut(name)
    grids = grids_in(small.module, lambda _: FORMATS[dtype]) if dtype else {}
    assert isinstance(small.signature, Signature)
    round_(small.module, small.signature, grids, feeds)
    return prepare(dense, small, split(feeds), Training(steps=steps, **more), checkpoint, grids=grids), small


def finished(made: Healing) -> Healing:
    for _ in made.run():
        pass
    return made


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.slow_but("bert", "llama")
def test_every_architecture_gets_better_or_stays(name: str) -> None:
    made, small = healing(name)
    before = made.task.judge()
    result = finished(made).healed()
    assert result.before == pytest.approx(before)
    assert result.after == pytest.approx(made.task.judge(), rel=1e-5) and result.after <= result.before
    assert result.kept and not result.problems and result.rate is not None
    assert all(torch.isfinite(p).all() for p in small.module.parameters())


def test_on_another_device_copies_are_trained_in_16_bits() -> None:
    """`cpu:0` stands for one: it is the CPU by another name, so everything is copied to it."""
    made, small = healing("bert", device="cpu:0")
    modules = [made.task.student.module, made.task.fit.dense.module]
    assert small.module is not modules[0] and torch.is_autocast_enabled("cpu") is False
    kinds = set()
    modules[0].get_submodule("encoder.layer.0.output.dense.left").register_forward_hook(
        lambda layer, args, output: kinds.add(output.dtype) if torch.is_grad_enabled() else None
    )
    before = snapshot(dict(small.module.named_parameters()))
    assert finished(made).healed().kept and kinds == {torch.bfloat16}
    assert made.task.judge_other(small.module) == pytest.approx(made.progress.best)
    assert any(not torch.equal(p, before[name]) for name, p in small.module.named_parameters())


def test_what_is_not_trained_stays() -> None:
    dense, small, feeds = cut("bert")
    made = prepare(dense, small, split(feeds), Training(steps=40))
    before = {name: p.detach().clone() for name, p in small.module.named_parameters()}
    dense_before = {name: p.detach().clone() for name, p in dense.module.named_parameters()}
    finished(made)
    changed = {name for name, p in small.module.named_parameters() if not torch.equal(p, before[name])}
    assert changed and changed <= set(made.task.parameters)
    assert "embeddings.word_embeddings.weight" not in made.task.parameters
    assert all(torch.equal(p, dense_before[name]) for name, p in dense.module.named_parameters())


def test_the_same_seed_and_steps_give_the_same_model_and_others_do_not() -> None:
    def numbers(seed: int) -> dict[str, torch.Tensor]:
        made, small = healing("gpt2", seed=seed)
        finished(made)
        return snapshot(dict(small.module.named_parameters()))

    first, second, other = numbers(0), numbers(0), numbers(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("stop", "dtype"), [(2, None), (12, None), (30, None), (50, None), (12, "int8"), (50, "int4")])
def test_an_interrupted_healing_goes_on_to_the_same_model(
    tmp_path: Path, stop: int, dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowrank.healing.grids.LEAST", 100)
    whole, small = healing("bert", seed=3, dtype=dtype)
    factors = [name for name in whole.grids or {} if name.endswith((".left.weight", ".right.weight"))]
    assert dtype is None or len(whole.task.parameters.keys() & {*factors}) > 8
    finished(whole)
    path = tmp_path / "healing.safetensors"
    broken, _ = healing("bert", seed=3, checkpoint=Checkpoint(path, "a"), dtype=dtype)
    steps = broken.run()
    for _ in range(stop):
        next(steps)
    steps.close()
    if not path.exists():
        # Before the first block is done there is nothing to go on from.
        assert stop == 2
        return
    resumed, again = healing("bert", seed=3, checkpoint=Checkpoint(path, "a", True), dtype=dtype)
    finished(resumed)
    found, wanted = dict(again.module.named_parameters()), dict(small.module.named_parameters())
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert resumed.healed().before == whole.healed().before
    with pytest.raises(HealingError, match="other options"):
        healing("bert", seed=3, checkpoint=Checkpoint(path, "b", True), dtype=dtype)


@pytest.mark.parametrize("judgement", [3, 8, 12])
def test_an_interruption_of_a_judgement_changes_nothing(tmp_path: Path, judgement: int) -> None:
    whole, small = healing("bert", seed=3)
    finished(whole)
    path = tmp_path / "healing.safetensors"
    broken, _ = healing("bert", seed=3, checkpoint=Checkpoint(path, "a"))
    steps, judge, calls = broken.run(), broken.task.judge, [0]
    while broken.progress.phase != "main":
        next(steps)

    def interrupted() -> float:
        calls[0] += 1
        if calls[0] == judgement:
            raise KeyboardInterrupt
        return judge()

    broken.task.judge = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        for _ in steps:
            pass
    resumed, other = healing("bert", seed=3, checkpoint=Checkpoint(path, "a", True))
    finished(resumed)
    assert resumed.healed().curve == whole.healed().curve
    wanted, found = (dict(backend.module.named_parameters()) for backend in (small, other))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("step", "judging", "total"),
    [
        (3.0, 1.0, 200.0),
        pytest.param(0.4, 0.2, 100.0, marks=pytest.mark.slow),
        pytest.param(0.6, 5.0, 400.0, marks=pytest.mark.slow),
    ],
)
def test_the_time_is_kept(monkeypatch: pytest.MonkeyPatch, step: float, judging: float, total: float) -> None:
    """Steps and judgements take the time that they take; blocks, trials and all end within a twentieth of it."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    dense, small, feeds = cut("bert")
    made = prepare(dense, small, split(feeds), Training(minutes=total / 60))

    def slow(of: Any, seconds: float) -> Any:
        def call(*args: Any) -> Any:
            now[0] += seconds
            return of(*args)

        return call

    monkeypatch.setattr(made.task, "backward", slow(made.task.backward, step))
    monkeypatch.setattr(made.task, "judge", slow(made.task.judge, judging))
    monkeypatch.setattr(BlockFit, "_backward", slow(BlockFit._backward, step / 2))
    monkeypatch.setattr(BlockFit, "_judge", slow(BlockFit._judge, judging / 2))
    monkeypatch.setattr("lowrank.healing.phases.PATIENCE", 100)
    result = finished(made).healed()
    assert result.kept and now[0] == pytest.approx(total, rel=0.05)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(HealingError, match="leave out --resume"):
        healing("bert", checkpoint=Checkpoint(tmp_path / "none.safetensors", resume=True))


def test_what_gets_worse_is_discarded() -> None:
    """Held-out batches that the dense model would not recognise: nothing learnt helps on them."""
    dense, small, feeds = cut("bert", share=1.0)
    made = prepare(dense, small, split(feeds), Training(steps=40))
    before = snapshot(made.task.parameters)
    teacher = made.task.heldout
    for i, feed in enumerate(teacher.feeds):
        with torch.no_grad():
            teacher._remembered[i] = made.task.student(feed)
    made.progress.before = made.progress.best = made.task.judge()
    assert not finished(made).healed().kept
    after = snapshot(made.task.parameters)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loss_that_is_no_number_stops_with_the_layer_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made, small = healing("bert")
    steps = made.run()
    while made.progress.phase != "main":
        next(steps)
    best = made.progress.best
    name = next(n for n in made.task.parameters if n.endswith("right.weight"))

    def break_() -> None:
        with torch.no_grad():
            made.task.parameters[name][0, 0] = math.nan

    break_()
    for _ in steps:
        # Again, at each lower rate.
        break_()
    result = made.healed()
    assert result.problems and name in result.problems[0] and result.after == best
    assert all(torch.isfinite(p).all() for p in small.module.parameters())


def test_without_memory_batches_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = healing("bert", steps=30)
    whole = type(made.task.student).__call__

    def short_of_memory(self: Any, feed: Feed) -> Any:
        if torch.is_grad_enabled() and len(feed["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, feed)

    monkeypatch.setattr(type(made.task.student), "__call__", short_of_memory)
    result = finished(made).healed()
    assert result.kept and made.task.parts > 4 and result.batch == 1


def test_without_memory_for_blocks_the_whole_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def short_of_memory(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("lowrank.healing.blocks.BlockFit._backward", short_of_memory)
    made, _ = healing("bert", steps=30)
    result = finished(made).healed()
    assert result.kept and not made.progress.blocks


def test_without_memory_to_judge_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def short_of_memory(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("lowrank.healing.module_runner.ModuleRunner.__call__", short_of_memory)
    with pytest.raises(HealingError, match="8 samples at a time"):
        healing("bert")


def test_rates_that_all_break_are_named() -> None:
    made, small = healing("bert")
    backward, before = made.task.backward, snapshot(dict(small.module.named_parameters()))

    def broken(batches: Any) -> float:
        loss = backward(batches)
        next(iter(made.task.parameters.values())).grad.fill_(math.nan)  # type: ignore[union-attr]
        return loss

    made.task.backward = broken  # type: ignore[method-assign]
    made.progress.phase = "search"
    problem = finished(made).healed().problems[0]
    assert f"the gradient of {next(iter(made.task.parameters))}" in problem and "each learning rate" in problem
    assert all(torch.equal(p, before[name]) for name, p in small.module.named_parameters())


def test_a_rate_that_is_far_too_high_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowrank.healing.phases.RAISED", 300)
    monkeypatch.setattr("lowrank.healing.phases.HIGHEST", 3.0)
    made, _ = healing("bert", steps=60)
    result = finished(made).healed()
    assert result.kept and result.rate is not None and result.rate < 0.1
    assert max(loss for _, loss in result.curve) > 3 * result.before


def test_a_raised_rate_that_breaks_is_lowered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowrank.healing.phases.HIGHEST", 1.0)
    made, _ = healing("bert", steps=60)
    backward, rates = made.task.backward, set[float]()

    def broken(batches: Any) -> float:
        rates.add(made.progress.rate)
        return math.nan if made.progress.rate > 0.02 else backward(batches)

    made.task.backward = broken  # type: ignore[method-assign]
    result = finished(made).healed()
    assert result.kept and not result.problems and result.rate is not None
    assert max(rates) > 0.02 > result.rate


def test_the_rate_is_raised_up_to_a_bound_and_only_where_a_trial_gains() -> None:
    made, _ = healing("bert")
    before = made.progress.before
    made.progress.tried = {"0.004": 4 * before, "0.002": 2 * before}
    assert made._first_rate() == 0.002
    for tried, raised in ((0.001, 0.004), (0.002, 0.008), (0.004, 0.008), (0.008, 0.008), (0.016, 0.016)):
        made.progress.tried = {repr(tried): 0.9 * before}
        assert made._first_rate() == raised


def test_vectors_that_are_alike_stay_where_the_file_may_not_grow() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    with torch.no_grad():
        for layer in (model[0], model[1]):
            layer.bias.zero_()
    assert set(trainable(model, ["2"])) == {"0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}
    assert set(trainable(model, ["2"], same_size=True)) == {"1.weight", "2.weight", "2.bias"}


def test_slices_add_up_to_the_whole_gradient() -> None:
    made, _ = healing("gpt2")
    task = made.task
    losses, gradients = [], []
    for parts in (1, 2, 8):
        task.parts = parts
        losses.append(task.backward([0, 1]))
        gradients.append({n: p.grad.clone() for n, p in task.parameters.items() if p.grad is not None})
        for parameter in task.parameters.values():
            parameter.grad = None
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-6)


def test_gradients_that_lie_in_memory_in_another_way_change_the_same_numbers() -> None:
    torch.manual_seed(0)
    gradient, start = torch.randn(6, 4), torch.randn(4, 6)
    ways: list[torch.Tensor] = []
    for turned in (gradient.T, gradient.T.contiguous()):
        parameter = nn.Parameter(start.clone())
        optimizer = Optimizer({"w": parameter}, 0.1)
        for _ in range(3):
            add_gradients_([parameter], [turned])
            add_gradients_([parameter], [turned])
            optimizer.step(0.5)
        ways.append(parameter.detach())
    assert torch.equal(*ways)


def test_every_batch_comes_once_before_any_comes_again() -> None:
    for together in (1, 2, 9):
        a_round = -(-5 // together)
        order = steps_in_turn(5, 7, together=together)
        taken = [next(order) for _ in range(3 * a_round)]
        for i in range(0, len(taken), a_round):
            assert sorted(index for step in taken[i : i + a_round] for index in step) == list(range(5))
        later = steps_in_turn(5, 7, skip=a_round + 1, together=together)
        assert [next(later) for _ in range(2 * a_round - 1)] == taken[a_round + 1 :]


def test_a_step_mixes_lengths_and_loses_no_sample() -> None:
    feeds = [{"ids": np.arange(rows * length).reshape(rows, length)} for rows, length in ((8, 5), (3, 7), (1, 2))]
    cut, together = mixed(feeds)
    assert together > 1 and all(len(feed["ids"]) <= 2 for feed in cut)
    for feed in feeds:
        same = [part["ids"] for part in cut if part["ids"].shape[1] == feed["ids"].shape[1]]
        np.testing.assert_array_equal(np.concatenate(same), feed["ids"])
    assert mixed(feeds[:1]) == (feeds[:1], 1)


def test_steps_are_relative_to_what_they_change() -> None:
    large, little = (torch.nn.Parameter(scale * torch.ones(4, 4, dtype=torch.float64)) for scale in (100.0, 0.01))
    optimizer = Optimizer({"large": large, "little": little}, 0.01)
    (large.sum() * 3 + little.sum() * 1e-2).backward()
    optimizer.step(0.05)
    assert float(large.detach()[0, 0]) == pytest.approx(99.0)
    assert float(little.detach()[0, 0]) == pytest.approx(0.0099)


def test_work_by_the_clock_and_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock, steps = WorkLimit(100), WorkLimit(0, 10)
    parts = Span(clock, 50), Span(steps, 5)
    now[0] = 25.0
    clock.count(1)
    steps.count(1)
    assert [p.share for p in parts] == [0.5, 0.2]
    now[0] = 80.0
    assert parts[0].share == 1.0 and WorkLimit(100, done=30).done == 30


def test_models_of_another_precision(tmp_path: Path) -> None:
    module = build("gpt2").bfloat16()
    dense = open_model(module)
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    chosen = [w for w in dense.weights if w.is_linear and w.role == "projection"]
    small = dense.rewrite({w.name: two_factors(dense.read(w.name), 6) for w in chosen})
    feeds = [dense.signature.example(8, 6, seed) for seed in range(6)]
    made = finished(prepare(dense, small, split(feeds), Training(steps=60)))
    assert made.healed().kept
    assert {p.dtype for p in small.module.parameters()} == {torch.bfloat16}
    reference = reference_of(dense, feeds[4:], [dense.outputs(f) for f in feeds[4:]])
    assert reference.loss([small.outputs(f) for f in feeds[4:]]) < made.healed().before


def test_faults() -> None:
    dense, small, feeds = cut("bert")
    with pytest.raises(HealingError, match="no device"):
        prepare(dense, small, split(feeds), Training(steps=10, device="cuda:77"))
    with pytest.raises(HealingError, match="nothing to heal"):
        prepare(dense, dense, split(feeds), Training(steps=10))


def test_the_trainer_of_transformers_trains_factors(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    _, small, _ = cut("gpt2")
    rows = torch.randint(0, small.module.config.vocab_size, (16, 8), generator=torch.Generator().manual_seed(0))
    examples = [{"input_ids": row, "labels": row} for row in rows]
    before = snapshot(dict(small.module.named_parameters()))
    options = TrainingArguments(
        str(tmp_path),
        max_steps=20,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=small.module, args=options, train_dataset=examples)  # type: ignore[arg-type]
    loss = trainer.evaluate(examples)["eval_loss"]  # type: ignore[arg-type]
    trainer.train()
    assert trainer.evaluate(examples)["eval_loss"] < 0.9 * loss  # type: ignore[arg-type]
    factors = [name for name in before if ".left." in name or ".right." in name]
    now = dict(small.module.named_parameters())
    assert factors and not any(torch.equal(now[name], before[name]) for name in factors)
