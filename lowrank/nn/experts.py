"""Stand-ins for a parameter that a module multiplies by itself: the matrices of all experts in one tensor.

A mixture's own code indexes such a tensor, perhaps transposes what it gets, and multiplies. The stand-ins go along with
that by torch's `__torch_function__` protocol: a slice of a factored stack is a product that has not been formed, and
multiplying by it multiplies by its two factors. What they do not know gets the dense numbers, so results are always
right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

TRANSPOSES = {Tensor.transpose, torch.transpose, torch.swapaxes, Tensor.swapaxes}
PRODUCTS = {torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm}
PRODUCTS |= {Tensor.__matmul__, Tensor.__rmatmul__}

Function = Callable[..., Any]

OWN = {"left", "right", "dense"}
"""What a stand-in holds itself, and is asked for before it holds it."""


class _Operand:
    """What stands for a matrix, or a stack of them, in the operations of a mixture's own code."""

    ndim: int

    def materialize(self) -> Tensor:
        """The dense tensor."""
        raise NotImplementedError

    def picked(self, index: Tensor | int) -> Any:
        """Some matrices of a stack; None if it is none."""
        raise NotImplementedError

    def transposed(self) -> Any:
        """The same with the last two axes swapped."""
        raise NotImplementedError

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What `functional.linear` gives with it as the weight."""
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        whole = isinstance(index, int) or (isinstance(index, Tensor) and index.dtype != torch.bool)
        part = self.picked(index) if whole else None
        return self.materialize()[index] if part is None else part

    def transpose(self, a: int, b: int) -> Any:
        """As for a tensor."""
        last = self.ndim
        if {a % last, b % last} == {last - 1, last - 2}:
            return self.transposed()
        return self.materialize().transpose(a, b)

    swapaxes = transpose

    @property
    def mT(self) -> Any:  # noqa: N802 - torch's own name
        """The transpose of each matrix."""
        return self.transposed()

    @classmethod
    def __torch_function__(
        cls, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Products with one such operand are its own; everything else gets the dense tensor."""
        named = dict(kwargs or {})
        if function is functional.linear and isinstance(args[1], cls) and not isinstance(args[0], cls):
            return args[1].linear(args[0], args[2] if len(args) > 2 else named.get("bias"))
        if function in PRODUCTS and len(args) == 2 and not named:
            a, b = reversed(args) if function is Tensor.__rmatmul__ else args
            ours: Any = a if isinstance(a, cls) else b
            if isinstance(a, cls) != isinstance(b, cls):
                return ours.__matmul__(b) if ours is a else ours.__rmatmul__(a)
        if function in TRANSPOSES and isinstance(args[0], cls) and len(args) == 3:
            first: Any = args[0]
            return first.transpose(args[1], args[2])
        dense = [a.materialize() if isinstance(a, cls) else a for a in args]
        return function(*dense, **{k: v.materialize() if isinstance(v, cls) else v for k, v in named.items()})


class Factored(_Operand):
    """`left @ right` that is only formed if it must be. Both may have axes in front: a stack of products."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right

    @property
    def shape(self) -> torch.Size:
        """That of the product."""
        return torch.Size((*self.left.shape[:-1], self.right.shape[-1]))

    def materialize(self) -> Tensor:
        """The product itself."""
        return self.left @ self.right

    def picked(self, index: Tensor | int) -> Factored | None:
        """The factors of some matrices of a stack."""
        return Factored(self.left[index], self.right[index]) if self.left.dim() > 2 else None

    def transposed(self) -> Factored:
        """The factors of the transpose, in the other order."""
        return Factored(self.right.transpose(-1, -2), self.left.transpose(-1, -2))

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Two products, and then the bias."""
        y = (x @ self.right.transpose(-1, -2)) @ self.left.transpose(-1, -2)
        return y if bias is None else y + bias

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.left @ (self.right @ other)

    def __rmatmul__(self, other: Tensor) -> Tensor:
        return (other @ self.left) @ self.right

    def to(self, *args: Any, **kwargs: Any) -> Factored:
        """Both factors elsewhere, or in another type."""
        return Factored(self.left.to(*args, **kwargs), self.right.to(*args, **kwargs))

    def size(self, axis: int | None = None) -> Any:
        """As for a tensor."""
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        """As for a tensor."""
        return self.left.dim()

    def __getattr__(self, name: str) -> Any:
        # Type, device and whatever else is asked of a tensor.
        if name in ("dtype", "device", "ndim", "requires_grad", "is_cuda", "layout"):
            return getattr(self.left, name)
        return getattr(self.materialize(), name)


class _Stack(nn.Module):
    """What both stand-ins share: in every operation they act as the `Factored` or tensor that `value` gives."""

    def value(self) -> Any:
        """What the module's code is to see."""
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        return self.value()[index]

    def __matmul__(self, other: Tensor) -> Any:
        return self.value() @ other

    def __rmatmul__(self, other: Tensor) -> Any:
        return other @ self.value()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name in OWN:
                raise
        # Shape, type, transposes: as for the tensor that it stands for.
        return getattr(self.value(), name)

    def __len__(self) -> int:
        return int(self.value().shape[0])

    @classmethod
    def __torch_function__(
        cls, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The same operation on the values."""
        shown = [a.value() if isinstance(a, _Stack) else a for a in args]
        named = {k: v.value() if isinstance(v, _Stack) else v for k, v in (kwargs or {}).items()}
        return function(*shown, **named)


class LowRankStack(_Stack):
    """Two factors for every matrix of a stack, in the place of one parameter (experts x a x b).

    Example:
        >>> stack = LowRankStack(4, 6, 8, rank=2)
        >>> nn.functional.linear(torch.zeros(3, 8), stack[1]).shape, stack.weight.shape
        (torch.Size([3, 6]), torch.Size([4, 6, 8]))
    """

    def __init__(self, stack: int, a: int, b: int, rank: int, **like: Any) -> None:
        super().__init__()
        self.rank = rank
        self.left = nn.Parameter(torch.zeros(stack, a, rank, **like))
        self.right = nn.Parameter(torch.zeros(stack, rank, b, **like))

    def value(self) -> Factored:
        """The product, not formed."""
        return Factored(self.left, self.right)

    @property
    def weight(self) -> Tensor:
        """The dense stack that the factors stand for."""
        return self.left @ self.right


Observe = Callable[[int | None, Tensor, str], None]
"""Called with the index of one expert (None: rows for each), what it was multiplied with (tokens x width, or a stack of
that), and which axis of the stored matrix that met: `cols` is its last one."""


class ObservedStack(_Stack):
    """A dense stack that reports what each of its matrices is multiplied with."""

    def __init__(self, dense: Tensor, observe: Observe) -> None:
        super().__init__()
        self.dense = dense if isinstance(dense, nn.Parameter) else nn.Parameter(dense)
        self._observe = observe

    def value(self) -> ObservedMatrix:
        """The dense stack, watched."""
        return ObservedMatrix(self.dense, self._observe, None, False)


@contextmanager
def observed(owner: nn.Module, key: str, observe: Observe) -> Iterator[None]:
    """Inside the block an `ObservedStack` stands in the place of a module's parameter."""
    parameter = owner._parameters.pop(key)
    assert parameter is not None
    owner._modules[key] = ObservedStack(parameter, observe)
    try:
        yield
    finally:
        owner._modules.pop(key)
        owner.register_parameter(key, parameter)


class ObservedMatrix(_Operand):
    """Matrices of a watched stack: which ones, and whether they have been transposed since."""

    def __init__(self, tensor: Tensor, observe: Observe, index: Tensor | int | None, turned: bool) -> None:
        self.tensor, self.observe, self.index, self.turned = tensor, observe, index, turned

    def materialize(self) -> Tensor:
        """The dense tensor, no longer watched."""
        return self.tensor

    def picked(self, index: Tensor | int) -> ObservedMatrix | None:
        """Some matrices of the whole stack."""
        whole = self.tensor.dim() == 3 and self.index is None
        return ObservedMatrix(self.tensor[index], self.observe, index, self.turned) if whole else None

    def transposed(self) -> ObservedMatrix:
        """The same matrices, the other way round."""
        return ObservedMatrix(self.tensor.transpose(-1, -2), self.observe, self.index, not self.turned)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The dense product, which is reported."""
        self._tell(x, last=True)
        return functional.linear(x, self.tensor, bias)

    def __matmul__(self, other: Tensor) -> Tensor:
        self._tell(other.transpose(-1, -2), last=True)
        return self.tensor @ other

    def __rmatmul__(self, other: Tensor) -> Tensor:
        self._tell(other, last=False)
        return other @ self.tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)

    def _tell(self, rows: Tensor, last: bool) -> None:
        """Report what was multiplied with which axis of the matrices, as they are stored."""
        side = "cols" if last != self.turned else "rows"
        if self.index is None:
            self.observe(None, rows, side)
        elif isinstance(self.index, int) or self.index.dim() == 0:
            self.observe(int(self.index), rows.reshape(-1, rows.shape[-1]), side)
        else:
            picked = rows.expand(*self.index.shape, *rows.shape[-2:]) if rows.dim() <= self.index.dim() else rows
            for expert in self.index.unique().tolist():
                chosen = picked[self.index == expert]
                self.observe(int(expert), chosen.reshape(-1, chosen.shape[-1]), side)
