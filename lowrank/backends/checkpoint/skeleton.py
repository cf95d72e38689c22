"""A model without numbers: its parameters have shapes and no memory, its buffers are real."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lowrank.backends.torch import huggingface


def skeleton(origin: object, config: Any, dtype: torch.dtype) -> nn.Module:
    """The model that a config describes, its parameters on the meta device. Buffers (positions, masks) are computed.

    Raises:
        UnsupportedModel: if transformers cannot build it.
    """
    with huggingface.buildable(origin), _without_memory():
        return huggingface.build_dense(config, dtype)


class _EmptyOnMeta(TorchFunctionMode):
    """What is allocated without being filled is what layers make their parameters of; buffers are computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def _without_memory() -> Iterator[None]:
    """Parameters go to the meta device, most of them from the start, the others as soon as a module has them."""
    before = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        before(module, name, parameter)

    nn.Module.register_parameter = register  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with _EmptyOnMeta():
            yield
    finally:
        nn.Module.register_parameter = before


def prefix_of(module: nn.Module) -> str:
    """What the names of a model with a head begin with, before those of the model without."""
    return getattr(module, "base_model_prefix", "") or "model"


def stored_names(wanted: Iterable[str], stored: Collection[str], prefix: str) -> dict[str, str]:
    """The name in a checkpoint of each of a model's tensors that it has.

    A model with a head reads the checkpoint of one without, and the other way round: the names differ by a prefix.

    Example:
        >>> stored_names(["layer.0.weight"], {"bert.layer.0.weight"}, "bert")
        {'layer.0.weight': 'bert.layer.0.weight'}
    """
    names: dict[str, str] = {}
    for name in wanted:
        for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
            if candidate in stored:
                names[name] = candidate
                break
    return names
