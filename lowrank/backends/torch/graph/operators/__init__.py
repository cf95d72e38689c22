"""The operators of ONNX that torch computes here, by domain and name."""

from __future__ import annotations

from lowrank.backends.torch.graph.operators.elementwise import ELEMENTWISE, MICROSOFT_ELEMENTWISE, refuses_cast
from lowrank.backends.torch.graph.operators.indexing import INDEXING
from lowrank.backends.torch.graph.operators.node import NodeFacts, Operator, Refusal
from lowrank.backends.torch.graph.operators.normalization import NORMALIZATION, NORMALIZATION_REFUSALS
from lowrank.backends.torch.graph.operators.products import MICROSOFT_PRODUCTS, PRODUCTS, refuses_fused_matmul
from lowrank.backends.torch.graph.operators.reductions import REDUCTIONS
from lowrank.backends.torch.graph.operators.resizing import RESIZING, RESIZING_REFUSALS
from lowrank.backends.torch.graph.operators.shapes import SHAPE_REFUSALS, SHAPES
from lowrank.backends.torch.graph.operators.windows import WINDOW_REFUSALS, WINDOWS

MICROSOFT = "com.microsoft"
OPERATORS: dict[tuple[str, str], Operator] = {
    **{
        ("", name): operator
        for table in (ELEMENTWISE, REDUCTIONS, SHAPES, INDEXING, PRODUCTS, NORMALIZATION, WINDOWS, RESIZING)
        for name, operator in table.items()
    },
    **{
        (MICROSOFT, name): each for table in (MICROSOFT_ELEMENTWISE, MICROSOFT_PRODUCTS) for name, each in table.items()
    },
}
REFUSALS: dict[tuple[str, str], Refusal] = {
    ("", "Cast"): refuses_cast,
    (MICROSOFT, "FusedMatMul"): refuses_fused_matmul,
    **{
        ("", name): refusal
        for table in (SHAPE_REFUSALS, NORMALIZATION_REFUSALS, WINDOW_REFUSALS, RESIZING_REFUSALS)
        for name, refusal in table.items()
    },
}

__all__ = ["OPERATORS", "REFUSALS", "NodeFacts", "Operator", "Refusal"]
