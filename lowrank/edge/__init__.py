"""ONNX out."""

from lowrank.edge.export import OPSET, export_onnx

__all__ = ["OPSET", "export_onnx"]
