"""ProductTensor: the dense weight of two factors, which takes what a package that merges into it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

DATA: Any = Tensor.data
"""The descriptor of `tensor.data`, by whose setter adapters are merged."""
SPARE = 8
"""Directions that are drawn beside those expected (Halko et al., 2011, section 4.2)."""


class ProductTensor(Tensor):
    """`left @ right`, formed anew whenever it is asked for. Setting its `data` hands the numbers to their layer.

    PEFT merges an adapter with `layer.weight.data += delta`, which would be lost on a product. All other operations
    are those of a plain tensor.
    """

    written: Callable[[Tensor], None]

    @classmethod
    def of(cls, product: Tensor, written: Callable[[Tensor], None]) -> Tensor:
        """A product that hands what it is set to, to `written`; plain while a graph is traced."""
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return product
        tracked = product.as_subclass(cls)
        tracked.written = written
        return tracked

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """As for a plain tensor, and what it gives is one."""
        with torch._C.DisableTorchFunctionSubclass():
            if function == DATA.__set__ and isinstance(args[0], cls):
                args[0].written(args[1].detach())
            return function(*args, **dict(kwargs or {}))


def factors_of(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two factors of a matrix of low rank, of as few columns as give all of it that is not rounding.

    Its range is found by a random projection, wider until nothing is left outside (Halko et al., 2011, algorithm 4.2),
    and within it the singular values say how many directions there are.

    Args:
        matrix: outputs x inputs.
        rank: the one that is expected.
    """
    wide = matrix.double()
    least, scale = min(wide.shape), torch.linalg.matrix_norm(wide)
    limit = max(wide.shape) * torch.finfo(matrix.dtype).eps
    draw = torch.Generator(device=wide.device).manual_seed(0)
    while True:
        rank = min(rank + SPARE, least)
        probe = torch.randn(wide.shape[1], rank, dtype=wide.dtype, device=wide.device, generator=draw)
        basis = torch.linalg.qr(wide @ probe)[0]
        inside = basis.mT @ wide
        if rank == least or torch.linalg.matrix_norm(wide - basis @ inside) <= limit * scale:
            break
        rank *= 2
    left, values, right = torch.linalg.svd(inside, full_matrices=False)
    count = max(int((values > limit * values[0]).sum()), 1)
    roots = values[:count].sqrt()
    return ((basis @ left[:, :count]) * roots).to(matrix), (roots[:, None] * right[:count]).to(matrix)
