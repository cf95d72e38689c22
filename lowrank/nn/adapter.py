"""Adaptable: a layer with a low-rank residual beside it, which can be another one at every run."""

from __future__ import annotations

from torch import Tensor, nn


class Adaptable(nn.Module):
    """`y = layer(x) + x A B`, with A and B in the orientation that an exported graph takes them in.

    Its state is `layer`, `lora_A` (inputs x rank) and `lora_B` (rank x outputs), the scale included.

    Example:
        >>> import torch
        >>> layer = Adaptable(nn.Linear(8, 6), torch.zeros(8, 2), torch.zeros(2, 6))
        >>> layer(torch.zeros(3, 8)).shape
        torch.Size([3, 6])
    """

    def __init__(self, layer: nn.Module, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.lora_A, self.lora_B = nn.Parameter(a), nn.Parameter(b)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, and add what the residual gives."""
        return self.layer(input) + input @ self.lora_A @ self.lora_B
