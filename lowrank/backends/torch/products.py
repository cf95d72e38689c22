"""The weights that layers compute of several stored tensors, in the place of these tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowrank.backends.reparametrized import Product, products_in


def multiplied(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Product]]:
    """Tensors with the matrices in them that are products, as an evaluated layer applies them, and which those are.

    The parts of other products (of convolutions) stay.
    """
    made: dict[str, Tensor] = {}
    merged: list[Product] = []
    for product in products_in(tensors):
        weight = _weight(product, [tensors[part] for part in product.parts])
        if weight is not None:
            made[product.parts[0]] = weight
            merged.append(product)
    gone = {part for product in merged for part in product.parts}
    names = {product.parts[0]: product.name for product in merged}
    return {
        names.get(name, name): made.get(name, tensor)
        for name, tensor in tensors.items()
        if name in made or name not in gone
    }, merged


def _weight(product: Product, parts: Sequence[Tensor]) -> Tensor | None:
    """A product in the type of its parts; None if it is no matrix, or the parts do not fit each other."""
    direction = parts[1] if product.kind == "weight_norm" else parts[0]
    if direction.dim() != 2 or not all(part.is_floating_point() for part in parts):
        return None
    wide = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
    if product.kind == "weight_norm":
        weight = _normalized(wide[0], wide[1])
    elif product.kind == "spectral_norm":
        weight = _of_unit_norm(wide[0], wide[1], wide[2])
    else:
        weight = wide[0] * wide[1] if wide[0].shape == wide[1].shape else None
    return None if weight is None else weight.to(direction.dtype)


def _normalized(gain: Tensor, direction: Tensor) -> Tensor | None:
    """`gain * direction / |direction|`, the norm along the axes that have one gain (Salimans and Kingma, 2016)."""
    gains = gain.reshape([1] * direction.dim()) if gain.dim() == 0 else gain
    if gains.dim() != direction.dim() or any(
        g not in (1, d) for g, d in zip(gains.shape, direction.shape, strict=True)
    ):
        return None
    axes = [axis for axis, size in enumerate(gains.shape) if size == 1]
    return gains * direction / direction.norm(dim=axes, keepdim=True) if axes else None


def _of_unit_norm(stored: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """A matrix by its largest singular value as the stored vectors estimate it (Miyato and others, 2018)."""
    if (left.numel(), right.numel()) == tuple(stored.shape):
        return stored / (left.flatten() @ stored @ right.flatten())
    if (right.numel(), left.numel()) == tuple(stored.shape):
        return stored / (right.flatten() @ stored @ left.flatten())
    return None
