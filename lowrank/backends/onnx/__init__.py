"""ONNX graphs, on onnx-ir and ONNX Runtime. Nothing here imports torch."""

from lowrank.backends.onnx.backend import OnnxBackend
from lowrank.backends.onnx.open import open_onnx

__all__ = ["OnnxBackend", "open_onnx"]
