"""Models whose numbers overflow on some of the data: counted, said, and averaged into nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from builders import Blocks, made, shape_spectra_
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import lowrank
from lowrank.backends import open_model
from lowrank.backends.onnx import OnnxBackend
from lowrank.backends.onnx.moments import _of_conv


def overflowing(dtype: torch.dtype, folder: Path) -> tuple[nn.Module, Path]:
    """A module and inputs of which every fifth leaves float16 on its way."""
    torch.manual_seed(0)
    module = shape_spectra_(Blocks()).eval().to(dtype)
    x = np.random.default_rng(0).standard_normal((200, 16))
    x[::5] = np.clip(3e4 * x[::5], -6e4, 6e4)
    place = folder / "inputs.npz"
    np.savez(place, x=x.astype(np.float32 if dtype == torch.float32 else np.float16))
    return module, place


def test_overflow_of_float16_is_in_the_notes_and_nowhere_else(tmp_path: Path) -> None:
    module, place = overflowing(torch.float16, tmp_path)
    found = lowrank.analyze(module, settings=lowrank.Settings(calib=str(place)))
    (note,) = [note for note in found.notes if "NaN or infinity" in note]
    count = sum(f.fit.nonfinite + f.heldout.nonfinite for f in found.grams.values())
    assert count > 0 and note.startswith(f"{count} activations") and "layers." in note
    for record in found.weights:
        assert np.isfinite(record.error_curve).all() and record.error_curve[0] == pytest.approx(1)
        assert all(np.isfinite(pair).all() and min(pair) >= 0 for pair in record.measured)
    for folds in found.grams.values():
        assert np.isfinite(folds.fit.moment).all() and np.isfinite(folds.fit.energy)
    plan = lowrank.select(found, 0.6)
    assert plan.meets_budget and np.isfinite(plan.worst_error)
    module, place = overflowing(torch.float32, tmp_path)
    notes = lowrank.analyze(module, settings=lowrank.Settings(calib=str(place))).notes
    assert not any("NaN or infinity" in note for note in notes)


@pytest.mark.parametrize("groups", [1, 2])
def test_patches_that_are_not_finite_are_counted(groups: int, tmp_path: Path) -> None:
    """Grouped convolutions too: a position counts in every group or in none, from torch and from ONNX Runtime."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, groups=groups).eval()
    x = torch.randn(5, 4, 6, 6)
    x[2, 1, 3, 3] = float("inf")
    from lowrank.backends.torch.moments import _of_conv as of_conv

    with torch.no_grad():
        grams = [of_conv(conv, x, conv(x), side) for side in ("input", "output")]
        given = conv(x).numpy()
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[3, 3], group=groups)
    kept = [numpy_helper.from_array(p.detach().numpy(), n) for n, p in (("w", conv.weight), ("b", conv.bias))]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in (("x", x), ("y", given))]
    graph = helper.make_graph([node], "conv", ends[:1], ends[1:], kept)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "conv.onnx")
    backend = open_model(tmp_path / "conv.onnx")
    assert isinstance(backend, OnnxBackend)
    (weight,) = backend.weights
    (use,) = backend._described.uses[weight.name]
    values = {use.site.vectors.name: x.numpy(), use.site.node.outputs[0].name: given}
    grams += [_of_conv(use.site, weight, side, values) for side in ("input", "output")]
    for gram in map(made, grams):
        assert gram.tokens + gram.nonfinite == 5 * 16 and gram.nonfinite > 0
        assert np.isfinite(gram.moment).all() and np.isfinite(gram.energy) and gram.energy > 0
