"""`compress_`: one call for a live module in somebody's own script, which writes no file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from lowrank.backends import Backend
from lowrank.calibrate.data import Calibration
from lowrank.calibrate.user_batches import calibration_of
from lowrank.core.budget import Budget
from lowrank.core.cost import UNITS
from lowrank.core.plan import Plan
from lowrank.core.selection.selector import Selector
from lowrank.core.structures import structure_named
from lowrank.core.weight import Skip
from lowrank.errors import InfeasibleBudget, UnsupportedModel
from lowrank.parallel import one_thread_each
from lowrank.pipeline.analyzing import with_analysis
from lowrank.pipeline.plans import replacements, select
from lowrank.pipeline.session import open_session, read_calibration
from lowrank.pipeline.settings import NO_DATA, Settings
from lowrank.progress import Track, silent

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What `compress_` has done to a module. Printed, it is a line for each layer."""

    plan: Plan
    """The structure and rank of every weight that was looked at, and the errors that are predicted of them."""
    layers: Mapping[str, Mapping[str, Any]]
    """What was replaced, by the name of the weight: as JSON can hold it, and for `prepare_`."""
    params_before: int
    """Numbers in the whole model; of frozen and trained layers alike, ties once."""
    params_after: int
    skips: tuple[Skip, ...] = ()
    """Every other tensor, and why it stayed."""
    notes: tuple[str, ...] = field(default=())

    @property
    def keep_ratio(self) -> float:
        """What is left of the weights that were looked at, as a share of their numbers."""
        return self.plan.keep_ratio

    def __str__(self) -> str:
        head = (
            f"{len(self.layers)} weights replaced, keep ratio {self.keep_ratio:.3f}: "
            f"{self.params_before:,} parameters, now {self.params_after:,}"
        )
        rows = [
            f"  {o.group}: {o.structure}"
            + ("" if structure_named(o.structure).is_dense else f" {o.rank}, error {o.error**0.5:.3f}")
            for o in self.plan.options
        ]
        return "\n".join([head, *rows, *(f"Note: {note}" for note in self.notes)])


class WhichLayers(TypedDict, total=False):
    """Keywords of `compress_`: the layers that it looks at, and on how much data."""

    include: str | Sequence[str]
    exclude: str | Sequence[str]
    targets: str | Sequence[str]
    samples: int
    mixed: bool


@one_thread_each()
def compress_(
    model: nn.Module,
    budget: Budget | float,
    *,
    calib: object = None,
    tokenizer: str | Path | None = None,
    selector: Selector | None = None,
    refit: bool = True,
    track: Track = silent,
    **options: Unpack[WhichLayers],
) -> Compressed:
    """Replace layers of a live module by low-rank ones, in place, within a budget.

    The module is the same object after that, on the same devices, in the same types and mode, and what is not replaced
    keeps its hooks and whether it is trained; replaced layers are new modules, so an optimizer is made after the call,
    as is `torch.compile`. Layers are measured in evaluation mode, on a copy on the CPU without the module's hooks.
    If anything fails the module is as it was.

    Args:
        model: the module; a layer by itself has no place to put another.
        budget: a `Budget` of parameters, bytes, MACs or error, or a keep ratio.
        calib: what layers see, without which all of their inputs count alike: a tensor, a dict of the model's inputs,
            an iterable of them such as a DataLoader (of tuples the first items are taken, as many as the model
            requires), a function that runs the model that it is given on data of its own, or the path of an `.npz` of
            inputs or (with `tokenizer`) of text, or `self` (see `Settings`).
        tokenizer: a tokenizer.json, or a folder with a tokenizer, for text.
        selector: the policy; by default the exact knapsack.
        refit: fit every replacement to what it sees in the compressed model, if there is calibration data.
        track: shows progress.
        options: `include`, only weights of these names, globs or `re:` patterns; `exclude`, not weights of these;
            `targets`, which kinds of layers (projections, head, embeddings, conv, all), by default projections;
            `samples`, calibration samples at most, by default 4096; `mixed`, whether built-in text is added to a text.

    Returns:
        What was done.

    Raises:
        LowRankError: with what to try; the module is then as it was.
        TypeError: if there is no such option.

    Example:
        done = lowrank.compress_(model, 0.5, calib=loader)
        print(done)
    """
    import torch
    from torch import nn

    from lowrank.backends.torch import ModuleBackend
    from lowrank.backends.torch.replace import replace_in_place_

    budget = budget if isinstance(budget, Budget) else Budget.params(budget)
    if budget.kind not in (*UNITS, "error"):
        raise InfeasibleBudget(f"a budget of {budget.kind} takes a graph to be written; use lowrank.compress")
    if isinstance(model, str | Path):
        raise UnsupportedModel(f"a {type(model).__name__} is not a model; give an nn.Module")
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModel("the model is compiled already; compress it first, then call torch.compile")
    for name in ("include", "exclude", "targets"):
        if name in options:
            options[name] = _several(options.get(name, ()))
    settings = Settings(calib=str(calib) if isinstance(calib, str | Path) else NO_DATA, **options)
    with torch.random.fork_rng(devices=_gpus(model) if isinstance(model, nn.Module) else []):
        read = partial(_calibration, calib=calib, tokenizer=tokenizer)
        session = with_analysis(open_session(model, read=read, settings=settings, track=track))
        plan = select(session.analysis, budget, selector)
        layers = replacements(session, plan, refit=refit)
        before = sum(p.numel() for p in model.parameters())
        weights = {weight.name: weight for weight in session.dense.weights}
        tried = session.dense.rewrite(layers) if layers else None
        assert tried is None or isinstance(tried, ModuleBackend)
        replaced = replace_in_place_(model, weights, layers, tried.replaced) if tried is not None else {}
        _tell_transformers(model, replaced)
    return Compressed(
        plan=plan,
        layers=replaced,
        params_before=before,
        params_after=sum(p.numel() for p in model.parameters()),
        skips=session.analysis.skips,
        notes=(*session.analysis.notes, *plan.notes),
    )


def prepare_(model: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Give a dense module the layers that `compress_` gave another one like it, without their numbers.

    So that the other one's state dict can be loaded into it.

    Args:
        model: the dense module, changed in place.
        layers: `Compressed.layers`, perhaps from a JSON file.

    Returns:
        The module.

    Raises:
        ArtifactError: if they are of another module.

    Example:
        torch.save({"layers": done.layers, "state": model.state_dict()}, "small.pt")
        ...
        content = torch.load("small.pt")
        lowrank.prepare_(build(), content["layers"]).load_state_dict(content["state"])
    """
    from lowrank.backends.torch.replace import prepare_layers_

    prepared = prepare_layers_(model, layers)
    _tell_transformers(prepared, layers)
    return prepared


def _tell_transformers(model: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Let `save_pretrained` write what `from_pretrained` needs, if the model is one of transformers, or holds some."""
    if "transformers" in sys.modules:
        from lowrank.backends.torch.quantizer import attach_inside

        attach_inside(model, layers)


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _gpus(model: nn.Module) -> list[int]:
    """The GPUs that a model is on, on which making layers draws random numbers."""
    indices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    return sorted(indices)


def _calibration(
    backend: Backend, settings: Settings, *, calib: object, tokenizer: str | Path | None
) -> Calibration | None:
    """The data as inputs of the model."""
    from lowrank.backends.torch import ModuleBackend

    assert isinstance(backend, ModuleBackend)
    if calib is None:
        return None
    if tokenizer is not None:
        backend = backend.with_tokenizer(Path(tokenizer).expanduser())
    if isinstance(calib, str | Path):
        return read_calibration(backend, settings)
    from lowrank.backends.torch.feeds import read_feeds

    feeds, signature = read_feeds(backend.module, calib, backend.signature, settings.samples)
    return calibration_of(backend, feeds, signature)
