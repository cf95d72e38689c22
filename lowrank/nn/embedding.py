"""LowRankEmbedding: a thin table of rows and a small matrix in place of a wide table."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class LowRankEmbedding(nn.Module):
    """`left[ids] @ right`: `left` is a table (entries x rank), `right.weight` a matrix (rank x width).

    Both are stored as the factors of a `LowRankLinear` from width to entries are, so that a head that is tied to the
    table can hold the very same tensors.

    Example:
        >>> layer = LowRankEmbedding(nn.Embedding(10, 6), rank=2)
        >>> layer(torch.tensor([1, 2])).shape, layer.weight.shape
        (torch.Size([2, 6]), torch.Size([10, 6]))
    """

    def __init__(self, like: nn.Embedding, rank: int, **numbers: Any) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = like.num_embeddings, like.embedding_dim
        self.padding_idx, self.rank = like.padding_idx, rank
        self.left = nn.Embedding(like.num_embeddings, rank, like.padding_idx, **numbers)
        self.right = nn.Linear(like.embedding_dim, rank, bias=False, **numbers)

    def forward(self, input: Tensor) -> Tensor:
        """Look up, then widen."""
        return self.left(input) @ self.right.weight

    @property
    def weight(self) -> Tensor:
        """The dense table that the factors stand for."""
        return self.left.weight @ self.right.weight

    def extra_repr(self) -> str:
        """Shape and rank."""
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}"


def embedding_reason(embedding: nn.Embedding) -> str:
    """Why a table cannot be factored, or an empty string."""
    if embedding.max_norm is not None:
        return "an embedding with max_norm changes its own rows as they are read"
    if type(embedding).forward is not nn.Embedding.forward:
        return f"{type(embedding).__name__} does more than look rows up"
    return ""
