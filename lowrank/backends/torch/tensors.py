"""Tensors in and out: torch to float64 matrices, state dicts to safetensors with ties kept."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowrank.backends.finite import finite
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.pivoted import Pivoted
from lowrank.core.weight import View
from lowrank.errors import NonFiniteWeight, UnsupportedModel, first_line


def as_matrix(name: str, stored: Tensor, view: View) -> Matrix:
    """A stored tensor as a rows x cols float64 matrix.

    Raises:
        NonFiniteWeight: if it holds NaN or infinity; the message says how many of which.
    """
    matrix = cast(Matrix, view.matrix(stored.detach().to(device="cpu", dtype=torch.float64).numpy()))
    return finite(name, matrix, stored.shape)


def as_stored(name: str, factor: NDArray[np.floating], like: Tensor) -> Tensor:
    """A factor in the dtype and on the device of the weight that it replaces.

    Raises:
        NonFiniteWeight: if it does not fit the dtype's range.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(factor)).to(like)
    # Types of 8 bits have no isfinite of their own.
    if not torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all():
        raise NonFiniteWeight(
            f"{name}: a factor holds numbers beyond the range of {str(like.dtype).removeprefix('torch.')}; "
            "convert the model to float32 or bfloat16 first, or leave this weight out with --exclude"
        )
    return tensor


def factor_tensors(name: str, factors: Factors | Pivoted, dtype: torch.dtype, table: bool = False) -> dict[str, Tensor]:
    """Factors as their layer's state dict names and holds them: `left.weight`, `right.weight`, perhaps `order`.

    Args:
        name: the weight's, for errors.
        factors: of any linear layer, or of a table.
        dtype: that they are stored in.
        table: whether it is looked up: then they are stored as the table is, so that a head tied to it shares them.

    Raises:
        NonFiniteWeight: if they do not fit the dtype's range.
    """
    left, right = factors.left, factors.right
    if table:
        left, right = right.T, left.T
    like = torch.empty(0, dtype=dtype)
    tensors = {"left.weight": as_stored(name, left, like), "right.weight": as_stored(name, right, like)}
    if isinstance(factors, Pivoted) and factors.order is not None:
        tensors["order"] = torch.from_numpy(factors.order)
    return tensors


def copied(module: nn.Module) -> nn.Module:
    """A copy of a module on the CPU, wherever its parts are; ties stay ties.

    It has no hooks, and can be differentiated by all its floating parameters.

    Raises:
        UnsupportedModel: if it cannot be copied.
    """
    known: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_meta:
            raise UnsupportedModel(
                f"a {type(module).__name__} has numbers that are not in memory (they are on the meta device, or were "
                "offloaded); load the whole model first"
            )
        if tensor.device.type != "cpu":
            # Never a second time on a GPU, whose memory may hold one model and no more.
            moved: Tensor = tensor.detach().to("cpu", copy=True)
            parameter = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if parameter else moved
    try:
        copied_module = copy.deepcopy(module, known)
    except Exception as error:
        raise UnsupportedModel(
            f"a {type(module).__name__} cannot be copied ({first_line(error)}); remove weight_norm or other hooks that "
            "compute its weights, and save its state dict"
        ) from None
    for each in copied_module.modules():
        for hooks in (each._forward_hooks, each._forward_pre_hooks, each._backward_hooks, each._backward_pre_hooks):
            hooks.clear()
    for parameter in copied_module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return copied_module


def module_in_float32(module: nn.Module) -> nn.Module:
    """The module itself, or a copy of it if any of its numbers are of another floating type."""
    other = any(p.is_floating_point() and p.dtype != torch.float32 for p in module.parameters())
    return copy.deepcopy(module).float() if other else module


def storage_key(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same numbers in memory."""
    return (
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
    )


def save_state(state: Mapping[str, Tensor], path: Path) -> dict[str, str]:
    """Write a state dict; a tensor under several names is written once.

    Returns:
        The names that were left out, and for each the name that its tensor is written under.
    """
    from safetensors.torch import save_file

    first_names: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach()
        first = first_names.setdefault(storage_key(tensor), name) if tensor.numel() else name
        if first != name:
            aliases[name] = first
        else:
            # A view of a larger storage is copied, so that the file holds the numbers of this tensor alone.
            whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            tensors[name] = tensor.contiguous() if whole else tensor.clone().contiguous()
    save_file(tensors, path, {"format": "pt"})
    return aliases


def hash_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and numbers, for models that are not files."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:32]


MODEL_FILE = "model.safetensors"


def bytes_of(state: Mapping[str, Tensor]) -> int:
    """Bytes of a state dict, tensors under several names counted once."""
    return sum({storage_key(t): t.numel() * t.element_size() for t in state.values() if t.numel()}.values())
