"""The refit never makes the output of the whole model worse on held-out samples."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import shape_spectra_, tiny_transformer, two_factors

from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.torch.module import ModuleBackend
from lowrank.calibrate.data import Calibration
from lowrank.calibrate.refit import sequential_refit
from lowrank.calibrate.sensitivity import reference_of
from lowrank.progress import silent

UNMEASURED: Any = SimpleNamespace(curvatures={})


def albert() -> Any:
    """One layer, applied at eight depths."""
    from transformers import AlbertConfig, AlbertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "embedding_size": 16, "intermediate_size": 64, "num_attention_heads": 4}
    return shape_spectra_(AlbertModel(AlbertConfig(vocab_size=64, num_hidden_layers=8, **sizes)).eval())


@pytest.mark.parametrize("kind", ["albert", "bert", "gpt2"])
def test_a_refit_is_judged_by_the_output(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    dense = open_model(albert() if kind == "albert" else tiny_transformer(kind))
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    feeds = [dense.signature.example(8, 9, seed=i) for i in range(6)]
    chosen = [w for w in dense.weights if w.is_linear and w.role == "projection"]
    cut = {w.name: two_factors(dense.read(w.name), w.full_rank // 3) for w in chosen}
    data = Calibration(tuple(feeds[:4]), tuple(feeds[4:]), (), dense, {"samples": 48})
    with caplog.at_level(logging.WARNING, "lowrank"):
        refitted = sequential_refit(data, dense.rewrite(cut), cut, UNMEASURED, silent)
    heldout = list(data.heldout)
    reference = reference_of(dense, heldout, [dense.outputs(feed) for feed in heldout])
    before, after = (
        reference.loss([model.outputs(feed) for feed in heldout])
        for model in (dense.rewrite(cut), dense.rewrite(refitted))
    )
    assert after <= before
    # What is left out is said, and nothing of it is left.
    told = any("the refit is left out" in record.getMessage() for record in caplog.records)
    assert told == all(refitted[name] is cut[name] for name in cut)
