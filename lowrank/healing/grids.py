"""Grids: which parameters of a module its file holds in few bits, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank.core.linalg.eigen import Matrix
from lowrank.core.rounding.formats import LEAST, Format
from lowrank.core.rounding.grid import codes_on_grid
from lowrank.core.rounding.ranges import Range
from lowrank.nn import LowRankEmbedding, PivotedLinear

FormatOf = Callable[[str], Format | None]
"""From the name of a matrix to the format that its file has it in; None if it has more bits there."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What a parameter may hold: a format, and which way round a graph has the matrix."""

    form: Format
    turned: bool = False
    """Whether rows of the graph's matrix (outputs, or entries of a table) are columns of the parameter."""
    table: bool = False
    """Whether rows are looked up."""
    read: Range | None = None
    """How what it is multiplied with is rounded, if that is the same in every run."""

    def matrix(self, numbers: Tensor) -> Matrix:
        """A parameter's numbers as the graph has them."""
        values = numbers.detach().double().cpu().numpy()
        return values.T if self.turned else values

    def tensor(self, matrix: Matrix, like: Tensor) -> Tensor:
        """A matrix of the graph as a parameter like another one has it."""
        return torch.from_numpy(matrix.T if self.turned else matrix).to(like)

    def holds(self, numbers: Tensor) -> bool:
        """Whether a parameter's numbers are in the format."""
        return codes_on_grid(self.matrix(numbers), self.form) is not None

    def fill_(self, parameter: Tensor, matrix: Matrix) -> None:
        """Give a parameter the numbers of a matrix of the graph."""
        with torch.no_grad():
            parameter.copy_(self.tensor(matrix, parameter))


Grids = Mapping[str, Grid]
"""Of parameters, by name."""


def grids_in(module: nn.Module, format_of: FormatOf, blocks: Iterable[str] | None = None) -> dict[str, Grid]:
    """The grid of every matrix that a graph of the module holds in few bits, by its first name.

    A matrix that two layers read in different ways, such as a factor of a table and of a head, has none. Nor has one
    in 16 bits, which cannot hold what formats stand for.

    Args:
        module: whose file is meant.
        format_of: from the name of a parameter.
        blocks: only the layers inside of these paths; their tables are left out.
    """
    fronts = None if blocks is None else tuple(f"{path}." for path in blocks)
    users: dict[Tensor, list[tuple[str, bool]]] = {}
    for path, turned in _layers(module):
        weight = module.get_submodule(path)._parameters.get("weight")
        if weight is not None and weight.dtype == torch.float32 and weight.numel() >= LEAST:
            users.setdefault(weight, []).append((path, turned))
    found = dict[str, Grid]()
    for name, weight in module.named_parameters():
        # What several layers share has one name here, and a graph may know it by another.
        read = users.get(weight, [])
        forms = [form for path, _ in read if (form := format_of(f"{path}.weight")) is not None]
        if not forms or len({turned for _, turned in read}) > 1:
            continue
        table = any(isinstance(module.get_submodule(path), nn.Embedding) for path, _ in read)
        if fronts is None or (name.startswith(fronts) and not table):
            found[name] = Grid(forms[0], read[0][1], table)
    return found


def _layers(module: nn.Module) -> Iterator[tuple[str, bool]]:
    """The paths of layers whose weight a graph may hold as it is, and whether it holds that transposed."""
    for path, layer in module.named_modules():
        parent = module.get_submodule(path.rpartition(".")[0])
        if isinstance(parent, PivotedLinear):
            # A graph in few bits has other factors.
            continue
        if type(layer) is nn.Linear or type(layer) is nn.Embedding:
            yield path, isinstance(parent, LowRankEmbedding) and layer is parent.right
        elif type(layer).__name__ == "Conv1D":
            # GPT-2's layers are stored as inputs x outputs.
            yield path, True
