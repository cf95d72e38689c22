"""The weights of a module, and a reason for every other tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Signature
from lowrank.backends.reparametrized import why_left
from lowrank.backends.torch.hooks import removed_after
from lowrank.backends.torch.inputs import call, name_of
from lowrank.backends.torch.layers import Form, form_of, register_optional_layers
from lowrank.backends.torch.normalize import experts_as
from lowrank.core.match import in_block, role_of
from lowrank.core.weight import Layer, Skip, View, Weight
from lowrank.nn import LowRankStack
from lowrank.nn.experts import observed

Owner = tuple[str, str, Tensor, nn.Module]
"""Module path, key of the parameter in it, the parameter, the module."""


def describe(module: nn.Module, signature: Signature | str) -> tuple[tuple[Weight, ...], tuple[Skip, ...]]:
    """Every matrix that a layer of a known type applies, and every other tensor of two or more dimensions."""
    register_optional_layers()
    owners: dict[int, list[Owner]] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        for key, parameter in child.named_parameters(recurse=False):
            if parameter.dim() >= 2:
                owners.setdefault(id(parameter), []).append((path, key, parameter, child))
    stacks, calls = _observed(module, signature, owners)
    stored = module.state_dict().keys()
    by_name: dict[str, Weight] = {}
    skips: list[Skip] = []
    for uses in owners.values():
        path, key, parameter, _ = uses[0]
        name = f"{path}.{key}" if path else key
        view = stacks.get(name)
        forms: list[Form] | str = [Form(view, "experts")] if view else _forms(uses)
        if isinstance(forms, str):
            forms = why_left(name, stored) or forms
            skips.append(Skip(name, tuple(parameter.shape), forms))
            continue
        # A tie between a table and a head is looked at as the table stores it.
        main = next((f for f in forms if f.kind == "lookup"), forms[0])
        stack, rows, cols = main.view.shape(parameter.shape)
        places = [name] if view else [p for p, *_ in uses]
        applied = [1] if view else _applied(uses, calls)
        layers = tuple(Layer(p, f.kind, n) for p, f, n in zip(places, forms, applied, strict=True))
        dtype = name_of(parameter.dtype)
        by_name[name] = Weight(name, rows, cols, dtype, "projection", layers, main.view, stack, main.spatial)
    weights = tuple(by_name.values())
    named = role_of(weights)
    return tuple(replace(w, role=named[w.name]) for w in weights), tuple(skips)


def _forms(uses: Sequence[Owner]) -> list[Form] | str:
    """How each layer applies a tensor, or why it stays as it is."""
    parameter = uses[0][2]
    if not parameter.is_floating_point():
        return f"its type is {name_of(parameter.dtype)}: compress before quantising"
    forms: list[Form] = []
    for path, key, _, owner in uses:
        form = form_of(owner)
        if not isinstance(form, str) and key != "weight":
            form = f"a {type(owner).__name__} does not multiply by it"
        if isinstance(form, str):
            others = [p for p, *_ in uses if p != path]
            return form + (f" (tied with {', '.join(others)})" if others else "")
        forms.append(form)
    kinds = {(f.kind, f.view) for f in forms}
    tied_head = {("lookup", View("cols rows")), ("linear", View("rows cols"))}
    if len(kinds) > 1 and kinds != tied_head:
        return "tied between layers that store it differently"
    if not uses[0][0]:
        return "the model is this one layer, which cannot replace itself; put it into a module"
    return forms


def _observed(
    module: nn.Module, signature: Signature | str, owners: dict[int, list[Owner]]
) -> tuple[dict[str, View], Counter[int]]:
    """What nothing but running the module on a few random tokens tells.

    Returns:
        The three-dimensional parameters that their module multiplies by, with which of their axes meets the input:
        mixtures hold the matrices of all experts in one tensor, some as (experts, outputs, inputs), some as (experts,
        inputs, outputs). And how often each module that owns a parameter is called, by its id.
    """
    candidates = [
        uses[0]
        for uses in owners.values()
        if len(uses) == 1 and uses[0][2].dim() == 3 and uses[0][2].shape[0] > 1 and _is_bare(uses[0][3], uses[0][0])
    ]
    sides: dict[str, str] = {}
    calls = Counter[int]()
    if isinstance(signature, str):
        return {}, calls

    def count(layer: nn.Module, _: object) -> None:
        calls[id(layer)] += 1

    layers = {id(owner): owner for uses in owners.values() for *_, owner in uses}
    try:
        with ExitStack() as places, torch.no_grad(), experts_as(module, "eager"):
            for path, key, _, owner in candidates:
                name = f"{path}.{key}"

                def observe(index: int | None, rows: Tensor, side: str, name: str = name) -> None:
                    sides[name] = side if sides.get(name, side) == side else "both"

                places.enter_context(observed(owner, key, observe))
            places.enter_context(removed_after(layer.register_forward_pre_hook(count) for layer in layers.values()))
            call(signature, module, signature.example(2, 8))
    except Exception:
        # A model that does not run on random inputs tells nothing.
        sides.clear()
        calls.clear()
    patterns = {"cols": "stack rows cols", "rows": "stack cols rows"}
    return {name: View(patterns[side], "stack rows cols") for name, side in sides.items() if side in patterns}, calls


def _applied(uses: Sequence[Owner], calls: Counter[int]) -> list[int]:
    """How often each layer of a parameter is applied. A module with several names is called by all of them together,
    and one that was not called, as an expert that no token was sent to, counts as called once."""
    named = Counter(id(owner) for *_, owner in uses)
    turns = Counter[int]()
    applied: list[int] = []
    for *_, owner in uses:
        each, more = divmod(max(calls[id(owner)], 1), named[id(owner)])
        applied.append(each + (turns[id(owner)] < more))
        turns[id(owner)] += 1
    return applied


def _is_bare(owner: nn.Module, path: str) -> bool:
    """Whether a module of a model's own multiplies by its tensors itself, inside a block."""
    ours = type(owner).__module__.startswith("torch.")
    return not ours and in_block(f"{path}.weight") and not isinstance(owner, LowRankStack)
