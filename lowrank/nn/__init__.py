"""Torch modules that stand in a rewritten model."""

from lowrank.nn.adapter import Adaptable
from lowrank.nn.attention import SplitAttention
from lowrank.nn.conv import LowRankConv, SpatialConv
from lowrank.nn.embedding import LowRankEmbedding
from lowrank.nn.experts import LowRankStack, ObservedStack
from lowrank.nn.linear import LowRankLinear
from lowrank.nn.narrow import NarrowLinear
from lowrank.nn.pivoted import PivotedLinear
from lowrank.nn.split import SplitLinear

__all__ = [
    "Adaptable",
    "LowRankConv",
    "LowRankEmbedding",
    "LowRankLinear",
    "LowRankStack",
    "NarrowLinear",
    "ObservedStack",
    "PivotedLinear",
    "SpatialConv",
    "SplitAttention",
    "SplitLinear",
]
