"""Which operators ONNX Runtime really runs for a file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lowrank.errors import ExportError, first_line

FUSED = {
    "attention": ("Attention", "MultiHeadAttention", "GroupQueryAttention"),
    "layer_norm": (
        "LayerNormalization",
        "SkipLayerNormalization",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "RMSNormalization",
    ),
    "gelu": ("Gelu", "BiasGelu", "FastGelu", "QuickGelu"),
}


def fused_counts(path: Path) -> dict[str, int]:
    """How many attention blocks, norms and gelus a file has as one operator each, once the runtime has optimised it.

    Raises:
        ExportError: if the runtime refuses the file.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "seen.onnx"
        options.optimized_model_filepath = str(optimised)
        # The weights in a file of their own: one file cannot pass 2 GB, and only nodes are read.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "seen.data")
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot load {path}: {first_line(error)}; compress again") from None
        operators = [node.op_type for node in onnx.load(str(optimised), load_external_data=False).graph.node]
    return {name: sum(operators.count(kind) for kind in kinds) for name, kinds in FUSED.items()}
