"""Passes over a graph: into the form that readers and tools expect."""

from lowrank.backends.onnx.passes.narrow_heads import narrow_heads
from lowrank.backends.onnx.passes.store_once import store_once
from lowrank.backends.onnx.passes.tidy import drop_joints, drop_traces, gemm_to_matmul, keep_apart

AFTER_TRACE = (gemm_to_matmul, drop_joints, narrow_heads, keep_apart, drop_traces, store_once)
"""What every traced graph goes through, in this order; each takes an `onnx_ir.Model`, which it changes."""
