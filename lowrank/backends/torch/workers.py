"""Processes that share the data: those that `accelerate launch` has started, or this one alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lowrank.errors import ClusterError
from lowrank.parallel import processes


class Workers:
    """Each takes its share of the data; gradients and moments are added up.

    Args:
        device: where the model is; with several processes only `cpu`, or a GPU for each.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.rank, self.count = processes()
        self._accelerator: Any = None
        if self.count > 1:
            try:
                from accelerate import Accelerator
            except ImportError:
                raise ClusterError("several processes need accelerate; pip install 'lowrank[lora]'") from None
            self._accelerator = Accelerator(cpu=device == "cpu")
            self.device, self.rank = str(self._accelerator.device), self._accelerator.process_index

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process's rows of a batch; none, if there are more processes than rows."""
        edges = np.linspace(0, rows, self.count + 1).astype(int).tolist()
        return slice(edges[self.rank], edges[self.rank + 1])

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all gradients."""
        if self._accelerator is None:
            return
        for parameter in parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._accelerator.reduce(gradient, reduction="sum")

    def summed(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of the arrays of all processes."""
        if self._accelerator is None:
            return numbers
        tensor = torch.from_numpy(np.ascontiguousarray(numbers)).to(self.device)
        return self._accelerator.reduce(tensor, reduction="sum").cpu().numpy()

    def total(self, value: float) -> float:
        """The sum of one number over all processes."""
        if self._accelerator is None:
            return value
        return float(self._accelerator.reduce(torch.tensor(value, device=self.device), reduction="sum"))

    def agreed(self, value: float) -> float:
        """The number of the first process, for all."""
        if self._accelerator is None:
            return value
        from accelerate.utils import broadcast

        return float(broadcast(torch.tensor([value], dtype=torch.float64, device=self.device))[0])
