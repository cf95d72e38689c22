"""What is analysed (Weight), where it is applied (Layer), how it is stored (View), what is left out (Skip)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["projection", "head", "embedding", "conv"]
"""`projection`: inside a repeated block (attention, feed-forward). `head`: outside, near the output."""

TARGETS: dict[str, tuple[Role, ...]] = {
    "projections": ("projection",),
    "head": ("head",),
    "embeddings": ("embedding",),
    "conv": ("conv",),
    "all": ("projection", "head", "embedding", "conv"),
}
"""What the setting `targets` may name, and the roles that each name stands for."""

LayerKind = Literal["linear", "contraction", "lookup", "conv", "experts"]
"""How a layer applies its weight: a plain product, a product of any other form, a table of rows, a convolution, or one
product for each of a stack."""


@dataclass(frozen=True, slots=True)
class View:
    """How a stored tensor becomes the matrix `W` of `y = W x` (rows = outputs, cols = inputs) and back.

    Example:
        >>> import numpy as np
        >>> View("cols rows").matrix(np.zeros((3, 5))).shape
        (5, 3)
        >>> View.of_conv((8, 4, 3, 3), groups=2).matrix(np.zeros((8, 4, 3, 3))).shape
        (2, 4, 36)
    """

    stored: str = "rows cols"
    """The stored axes, as an einops pattern."""
    seen: str = "rows cols"
    """The matrix, or the stack of them, as a pattern over the same axes."""
    sizes: tuple[tuple[str, int], ...] = ()
    """The length of every axis that stands in parentheses in either pattern."""

    @classmethod
    def of_conv(cls, stored: Sequence[int], groups: int = 1) -> View:
        """Outputs against whole patches (outputs, inputs / groups, k ...): a matrix for each group of channels."""
        axes = ["i", "h", "w", "d"][: len(stored) - 1]
        patch = f"({' '.join(axes)})"
        sizes = tuple(zip(axes, map(int, stored[1:]), strict=True))
        if groups == 1:
            return cls(f"rows {' '.join(axes)}", f"rows {patch}", sizes)
        return cls(f"(stack rows) {' '.join(axes)}", f"stack rows {patch}", (("stack", groups), *sizes))

    @classmethod
    def of_spatial(cls, stored: Sequence[int]) -> View:
        """Columns of the kernel against rows of it: what a vertical convolution after a horizontal one can be."""
        sizes = tuple(zip("oihw", map(int, stored), strict=True))
        return cls("o i h w", "(o h) (i w)", sizes)

    def matrix(self, stored: NDArray[np.generic]) -> NDArray[np.generic]:
        """The stored tensor as a rows x cols matrix, or stack x rows x cols (the same memory where possible)."""
        from einops import rearrange

        return rearrange(stored, f"{self.stored} -> {self.seen}", **self._sizes(self.stored))

    def stored_from(self, matrix: NDArray[np.generic]) -> NDArray[np.generic]:
        """A matrix as it is stored; the inverse of `matrix`."""
        from einops import rearrange

        return rearrange(matrix, f"{self.seen} -> {self.stored}", **self._sizes(self.seen))

    def shape(self, stored: Sequence[int]) -> tuple[int, int, int]:
        """(stack, rows, cols) of a stored tensor of this shape."""
        import numpy as np

        *stack, rows, cols = self.matrix(np.broadcast_to(np.int8(0), tuple(stored))).shape
        return stack[0] if stack else 1, rows, cols

    def _sizes(self, pattern: str) -> dict[str, int]:
        inside = " ".join(re.findall(r"\(([^)]*)\)", pattern)).split()
        return {name: size for name, size in self.sizes if name in inside}


@dataclass(frozen=True, slots=True)
class Layer:
    """One place that applies a Weight; the unit of rewriting."""

    name: str
    kind: LayerKind
    applied: int = 1
    """How often a forward pass applies it."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One stored tensor seen as a matrix, or as a stack of them that share a rank (groups of channels, experts).

    The unit of analysis, selection and factorisation. Holds no data. A weight with more than one layer is tied: it is
    analysed once, costs once and is stored once.
    """

    name: str
    rows: int
    cols: int
    dtype: str
    role: Role
    layers: tuple[Layer, ...] = ()
    view: View = View()
    stack: int = 1
    """How many matrices of this shape there are."""
    spatial: View | None = None
    """For a k x k convolution: the other matrix that it can be seen as."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols): outputs, inputs."""
        return self.rows, self.cols

    @property
    def params(self) -> int:
        """How many numbers the dense weight holds."""
        return self.stack * self.rows * self.cols

    @property
    def is_linear(self) -> bool:
        """Whether one linear layer, and nothing else, applies it."""
        return [layer.kind for layer in self.layers] == ["linear"]

    @property
    def is_table(self) -> bool:
        """Whether its rows are looked up, perhaps by a head that is tied to it as well."""
        return any(layer.kind == "lookup" for layer in self.layers)

    @property
    def products(self) -> int:
        """How many products a forward pass makes with it; one, if nothing is known of its layers."""
        return sum(layer.applied for layer in self.layers if layer.kind != "lookup") if self.layers else 1

    @property
    def lookups(self) -> int:
        """How often a forward pass looks up rows of it."""
        return sum(layer.applied for layer in self.layers if layer.kind == "lookup")

    @property
    def full_rank(self) -> int:
        """The largest rank it can have."""
        return min(self.rows, self.cols)


@dataclass(frozen=True, slots=True)
class Skip:
    """A stored tensor that is left as it is, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


CouplingKind = Literal["query_key", "rotary_halves", "rotary_neighbours", "value_output", "hidden", "same_input"]
"""What ties weights to each other: a freedom of the model, which keeps its outputs while the weights change together.

`query_key`, `value_output`: any invertible map of a head's channels between the two. `rotary_halves`,
`rotary_neighbours`: query and key whose channels positions turn in pairs, (i, i + width / 2) or (2 i, 2 i + 1): any
turn and scale of a pair. `hidden`: any order of the neurons between the first weights and the last. `same_input`: the
weights read one input; nothing else is between them.
"""

ROTARY = ("rotary_halves", "rotary_neighbours")


@dataclass(frozen=True, slots=True)
class Coupling:
    """Weights between which the model is free to choose coordinates, and so to have fewer of them."""

    kind: CouplingKind
    weights: tuple[str, ...]
    """In the order of the kind's name; of `hidden` the last one reads what the others give."""
    heads: int = 1
    """Heads of the queries."""
    kv_heads: int = 1
    """Heads of keys and values; each serves `heads / kv_heads` neighbouring query heads."""


@dataclass(frozen=True, slots=True)
class Group:
    """Weights that are decided together. A plan has one option for each group of a partition of the weights."""

    name: str
    weights: tuple[str, ...]
    coupling: Coupling | None = None
    """What there is between several weights; None for a weight by itself."""

    @classmethod
    def of(cls, coupling: Coupling) -> Group:
        """The group of coupled weights, named after what their names have in common.

        Example:
            >>> Group.of(Coupling("query_key", ("layer.0.attn.query.weight", "layer.0.attn.key.weight"))).name
            'layer.0.attn.{query,key}.weight'
        """
        parts = [name.split(".") for name in coupling.weights]
        same = [len(set(column)) == 1 for column in zip(*parts, strict=False)]
        front = same.index(False) if False in same else len(same)
        same = [len(set(column)) == 1 for column in zip(*(p[front:][::-1] for p in parts), strict=False)]
        back = same.index(False) if False in same else len(same)
        middle = ",".join(".".join(p[front : len(p) - back]) for p in parts)
        ends = parts[0][len(parts[0]) - back :]
        return cls(".".join([*parts[0][:front], f"{{{middle}}}", *ends]), coupling.weights, coupling)
