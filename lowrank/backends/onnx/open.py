"""Opening an ONNX file as an OnnxBackend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowrank.artifacts.files import RECORD_FILE, hash_files
from lowrank.backends.base import Opening, already_compressed
from lowrank.backends.beside import with_pooling
from lowrank.backends.onnx.backend import OnnxBackend
from lowrank.backends.onnx.constants import nodes_of, resolve
from lowrank.backends.onnx.inference import as_used
from lowrank.backends.onnx.load import load_model
from lowrank.backends.onnx.signature import signature_of
from lowrank.backends.onnx.sites import INTEGER_PRODUCTS, WEIGHT_INPUT
from lowrank.backends.onnx.tensor_files import is_linked
from lowrank.errors import UnsupportedModel


def open_onnx(path: Path, opening: Opening) -> OnnxBackend:
    """The backend for an ONNX file that exists.

    Raises:
        UnsupportedModel: if it is damaged or invalid, was quantised, or is lowrank's own already.
    """
    if opening.arch or opening.config:
        raise UnsupportedModel(f"{path} says itself what it computes; leave --arch and --config out")
    if path.name == "model.onnx" and (path.parent / "model" / RECORD_FILE).is_file():
        raise already_compressed(f"{path} is of")
    return read_onnx(path, opening)


def read_onnx(path: Path, opening: Opening) -> OnnxBackend:
    """The same also for a graph that was compressed here, which can still be rounded.

    Raises:
        UnsupportedModel: if it is damaged or invalid, or was quantised.
    """
    model, outside = load_model(path)
    refuse_quantised(path, model)
    notes = as_used(model)
    tokenizer = Path(opening.tokenizer).expanduser() if opening.tokenizer else path.parent / "tokenizer.json"
    backend = backend_of(path, model, outside, tokenizer)
    if notes:
        return replace(backend, source={**backend.source, "notes": list(notes)})
    # ONNX Runtime would not follow a link.
    return backend if any(map(is_linked, outside)) else replace(backend, path=path)


def backend_of(path: Path, model: Any, outside: Sequence[Path], tokenizer: Path) -> OnnxBackend:
    """The backend for what was read from a file, and perhaps changed since.

    Args:
        path: the file.
        model: an `onnx_ir.Model`.
        outside: files with tensors of it.
        tokenizer: where its tokenizer would be.
    """
    return OnnxBackend(
        model=model,
        source={"path": str(path), "kind": "onnx", "fingerprint": hash_files([path, *outside])},
        declared=with_pooling(signature_of(model), path, tokenizer if tokenizer.exists() else None),
        folder=path.parent,
        tokenizer=tokenizer if tokenizer.exists() else None,
        external=bool(outside),
    )


def refuse_quantised(path: Path, model: Any) -> None:
    """A graph most of whose products have integer weights has lost the numbers that low rank would start from."""
    quantised = plain = 0
    for node in nodes_of(model):
        if node.op_type in INTEGER_PRODUCTS:
            quantised += 1
        elif node.op_type in WEIGHT_INPUT and not node.op_type.startswith("Gather"):
            weights = [resolve(node.inputs[at]) for at in WEIGHT_INPUT[node.op_type] if at < len(node.inputs)]
            quantised += any(isinstance(f, str) and f.startswith("quantised") for f in weights)
            plain += any(not isinstance(f, str) and f is not None for f in weights)
    if quantised > plain:
        raise UnsupportedModel(
            f"{path} is quantised ({quantised} of its {quantised + plain} products have integer weights); compress the "
            "model that it was made from, then quantise model.onnx"
        )
