"""Calibration data of a user's own script, as arrays by input name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowrank.backends.inputs import Dim, Feed, Input, Signature
from lowrank.backends.torch.hooks import removed_after
from lowrank.backends.torch.inputs import name_of
from lowrank.errors import CalibrationError, first_line

TARGETS = ("labels", "label")
"""Entries of a batch that only a loss needs; they are left out."""
FORMS = "a tensor, a dict of the model's inputs, an iterable of them, or a function that runs the model"


@dataclass(frozen=True)
class _ForwardCall:
    """The inputs of one forward pass."""

    tensors: Mapping[str, Tensor]
    positional: int
    fixed: tuple[tuple[str, Any], ...]


def read_feeds(module: nn.Module, given: object, known: Signature | str, most: int) -> tuple[list[Feed], Signature]:
    """Feeds of a module, and the signature that they show.

    Args:
        module: that they are for.
        given: a tensor or a mapping by input name, an iterable of those (or of tuples, of which the first items are
            taken, as many as the module requires), or a function that runs the module on data of its own.
        known: what is known of the module's inputs.
        most: samples at most; no more are asked for.

    Raises:
        CalibrationError: if it is none of these.
    """
    calls: list[_ForwardCall] = []
    samples = 0
    for each in _calls(module, given):
        calls.append(each)
        first = next(iter(each.tensors.values()))
        samples += first.shape[0] if first.dim() else 1
        if samples >= most:
            break
    if not calls:
        raise CalibrationError(f"the calibration data is empty; give {FORMS}")
    shape = [(list(each.tensors), each.positional, each.fixed) for each in calls]
    odd = next((each for each in shape if each != shape[0]), None)
    if odd is not None:
        raise CalibrationError(
            f"calibration batches are fed differently: one with {', '.join(shape[0][0])}, one with "
            f"{', '.join(odd[0])}; feed the model in one way"
        )
    feeds: list[Feed] = [{name: _array(name, tensor) for name, tensor in each.tensors.items()} for each in calls]
    return feeds, _signature(calls, feeds, known)


def _calls(module: nn.Module, given: object) -> Iterator[_ForwardCall]:
    forward = inspect.signature(module.forward)
    if isinstance(given, Tensor | np.ndarray | Mapping):
        given = [given]
    if callable(given) and not isinstance(given, Iterable):
        given = _recorded(module, given)
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise CalibrationError(f"calibration data of the type {type(given).__name__} cannot be read; give {FORMS}")
    for item in given:
        args, kwargs = _arguments(forward, item)
        try:
            bound = forward.bind(*args, **kwargs)
        except TypeError as error:
            raise CalibrationError(
                f"a calibration batch does not fit the model's forward{forward}: {error}; give {FORMS}"
            ) from None
        yield _call(forward, bound, len(args))


def _recorded(module: nn.Module, run: Callable[[nn.Module], object]) -> list[_Recorded]:
    """The arguments of every call of the module that a function makes."""
    calls: list[_Recorded] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(_Recorded((args, dict(kwargs))))

    try:
        with removed_after([module.register_forward_pre_hook(note, with_kwargs=True)]), torch.no_grad():
            run(module)
    except Exception as error:
        raise CalibrationError(f"the function that is to run the model failed: {first_line(error)}") from error
    return calls


class _Recorded(tuple[Any, ...]):
    """Arguments as they were passed, which are not to be looked through."""


def _arguments(forward: inspect.Signature, item: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a forward pass from an item of the user's data."""
    if isinstance(item, _Recorded):
        return item[0], item[1]
    if isinstance(item, Tensor | np.ndarray):
        return (item,), {}
    if isinstance(item, Mapping):
        wild = any(p.kind is p.VAR_KEYWORD for p in forward.parameters.values())
        wanted = {k: v for k, v in item.items() if k not in TARGETS and (wild or k in forward.parameters)}
        if not wanted:
            raise CalibrationError(
                f"a calibration batch holds {', '.join(map(str, item))}, and the model reads "
                f"{', '.join(forward.parameters)}; name its inputs as the model does"
            )
        return (), wanted
    if isinstance(item, list | tuple) and item:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        required = [p for p in forward.parameters.values() if p.kind in kinds and p.default is p.empty]
        return tuple(item[: max(1, len(required))]), {}
    raise CalibrationError(f"a calibration batch of the type {type(item).__name__} cannot be read; give {FORMS}")


def _call(forward: inspect.Signature, bound: inspect.BoundArguments, given: int) -> _ForwardCall:
    tensors: dict[str, Tensor] = {}
    fixed: list[tuple[str, Any]] = []
    positional = 0
    for number, (name, value) in enumerate(_flat(forward, bound)):
        value = torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else value
        if isinstance(value, Tensor):
            tensors[name] = value
            positional += number < given
        elif value is None or isinstance(value, bool | int | float | str):
            if number < given:
                raise CalibrationError(f"the input {name} is {value!r}, passed by position; pass it by name")
            fixed.append((name, value))
        else:
            raise CalibrationError(
                f"the input {name} is a {type(value).__name__}, and calibration knows only tensors; leave it out"
            )
    if not tensors:
        raise CalibrationError(f"a calibration batch holds no tensor; give {FORMS}")
    return _ForwardCall(tensors, positional, tuple(fixed))


def _flat(forward: inspect.Signature, bound: inspect.BoundArguments) -> Iterator[tuple[str, Any]]:
    for name, value in bound.arguments.items():
        kind = forward.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}{i}", each) for i, each in enumerate(value))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        else:
            yield name, value


def _array(name: str, tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    if not torch.isfinite(tensor).all():
        raise CalibrationError(f"the calibration input {name} holds NaN or infinity; remove those samples")
    return tensor.numpy()


def _signature(calls: list[_ForwardCall], feeds: list[Feed], known: Signature | str) -> Signature:
    """Of the axes the first is the batch if all inputs have it in common; others are fixed unless they vary."""
    inputs: list[Input] = []
    longest = 1
    for name, tensor in calls[0].tensors.items():
        shapes = [feed[name].shape for feed in feeds]
        if any(len(shape) != len(shapes[0]) for shape in shapes):
            raise CalibrationError(f"the calibration input {name} has not the same number of axes in all batches")
        counted = all(shape and shape[0] == len(next(iter(f.values()))) for shape, f in zip(shapes, feeds, strict=True))
        dims: list[Dim] = []
        whole = not tensor.is_floating_point()
        for axis, size in enumerate(shapes[0]):
            sizes = {shape[axis] for shape in shapes}
            if axis == 0 and counted:
                dims.append("batch")
            elif len(sizes) > 1 or (whole and counted and axis == 1 and len(shapes[0]) == 2):
                dims.append("sequence")
                longest = max(longest, *sizes)
            else:
                dims.append(size)
        high = max((int(feed[name].max(initial=0)) for feed in feeds), default=0) + 1 if whole else 1
        inputs.append(Input(name, name_of(tensor.dtype), tuple(dims), high))
    signature = Signature(tuple(inputs), (), calls[0].positional, max(longest, 8), calls[0].fixed)
    if isinstance(known, str):
        return signature
    # A table may have more rows than the samples use.
    table = {each.name: each.high for each in known.inputs}
    inputs = [replace(each, high=max(each.high, table.get(each.name, 1))) for each in inputs]
    fixed = {**dict(known.fixed_kwargs), **dict(calls[0].fixed)}
    return replace(
        known,
        inputs=tuple(inputs),
        positional=signature.positional,
        max_sequence=signature.max_sequence,
        fixed_kwargs=tuple(fixed.items()),
    )
