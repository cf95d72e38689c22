"""The torch modules that a rewritten model contains."""

from lowrank.nn.linear import LowRankLinear

__all__ = ["LowRankLinear"]
