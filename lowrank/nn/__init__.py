"""Torch modules that stand in a rewritten model."""

from lowrank.nn.attention import SplitAttention
from lowrank.nn.conv import LowRankConv, SpatialConv
from lowrank.nn.embedding import LowRankEmbedding
from lowrank.nn.experts import LowRankStack, ObservedStack
from lowrank.nn.linear import LowRankLinear

__all__ = [
    "LowRankConv",
    "LowRankEmbedding",
    "LowRankLinear",
    "LowRankStack",
    "ObservedStack",
    "SpatialConv",
    "SplitAttention",
]
