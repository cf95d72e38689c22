"""Operators that multiply matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank.backends.torch.graph.operators.node import NodeFacts, Operator


def _matmul(node: NodeFacts, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def _gemm(node: NodeFacts, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """`alpha a' b' + beta c`."""
    a = a.T if node.get("transA", 0) else a
    b = b.T if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    product = a @ b if alpha == 1.0 else alpha * (a @ b)
    if c is None:
        return product
    return product + (c if beta == 1.0 else beta * c)


def _einsum(node: NodeFacts, *inputs: Tensor) -> Tensor:
    return torch.einsum(node.get("equation"), *inputs)


def _fused_matmul(node: NodeFacts, a: Tensor, b: Tensor) -> Tensor:
    a = a.transpose(-1, -2) if node.get("transA", 0) else a
    b = b.transpose(-1, -2) if node.get("transB", 0) else b
    return node.get("alpha", 1.0) * torch.matmul(a, b)


def refuses_fused_matmul(node: NodeFacts) -> str | None:
    """Batches whose axes are moved as well."""
    return "moves the axes of batches" if node.get("transBatchA", 0) or node.get("transBatchB", 0) else None


PRODUCTS: dict[str, Operator] = {"Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
MICROSOFT_PRODUCTS: dict[str, Operator] = {"FusedMatMul": _fused_matmul}
