"""The operator set and the file format that graphs are written in."""

from __future__ import annotations

OPSET = 20
"""Old enough for any runtime of the last years, new enough for a Gelu operator."""

IR_VERSION = 9
"""Of the file format: onnxruntime 1.17 reads no later one."""
