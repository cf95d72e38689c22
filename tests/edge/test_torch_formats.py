"""`lowrank export --to`: files of torch's exporter, each read back by the runtime that it is for."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import with_biases
from builders import trained_blocks
from typer.testing import CliRunner

import lowrank
from lowrank import pipeline
from lowrank.backends import open_model
from lowrank.backends.torch.module import ModuleBackend
from lowrank.cli.app import app
from lowrank.edge.torch_formats import TORCH_FORMATS

MODULES = {"blocks": trained_blocks, "bert": lambda: with_biases("bert")}


@pytest.mark.slow_but("blocks")
@pytest.mark.parametrize("name", list(MODULES))
def test_a_program_is_open_and_takes_inputs_by_name(name: str, tmp_path: Path) -> None:
    """It needs no code of the model any more; what the model takes by place it takes so."""
    told, module = list[str](), MODULES[name]()
    path = pipeline.export_torch(module, tmp_path / "out", "pt2", remark=told.append)
    dense = open_model(module)
    assert isinstance(dense, ModuleBackend) and not isinstance(dense.signature, str)
    program = torch.export.load(path).module()
    for batch, length in ((1, 3), (5, 20)):
        feed = dense.signature.example(batch, length)
        tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
        outputs = program(*tensors.values()) if dense.signature.positional else program(**tensors)
        for output, wanted in dense.outputs(feed).items():
            assert torch.allclose(outputs[output], torch.from_numpy(wanted), atol=1e-5)
    assert told[0] == "it takes any batch and length" and told[1].startswith("compared with torch on 4 inputs")


@pytest.mark.parametrize("form", ["executorch", "litert"])
def test_a_missing_package_is_named(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = TORCH_FORMATS[form].package
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(lowrank.LowRankError, match=f"pip install {package}"):
        pipeline.export_torch(trained_blocks(), tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


def test_other_options_do_not_go_with_it(tmp_path: Path) -> None:
    for option in (["--hub"], ["--quantize", "int8"], ["--opset", "20"], ["--with-past"]):
        done = CliRunner().invoke(app, ["export", "model", "--to", "pt2", "-o", str(tmp_path / "out"), *option])
        assert done.exit_code == 2 and "--to is a form of its own" in " ".join(done.output.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result with narrower heads and fewer neurons."""
    place = tmp_path_factory.mktemp("formats")
    with_biases("gpt2").save_pretrained(place / "model")  # type: ignore[operator]
    np.savez(place / "data.npz", input_ids=np.random.default_rng(0).integers(0, 64, (64, 12)))
    settings = lowrank.Settings(calib=str(place / "data.npz"))
    only = {"structures": ("product", "neurons")}
    lowrank.compress(
        place / "model", 0.4, output=place / "run", selector=lowrank.Knapsack(**only), settings=settings, latency=False
    )
    return place / "run"


@pytest.mark.slow
@pytest.mark.parametrize("form", list(TORCH_FORMATS))
def test_a_run_is_written_in_every_form(form: str, run: Path, tmp_path: Path) -> None:
    """The command compares with the module, and would fail if the file gave anything else."""
    kind = TORCH_FORMATS[form]
    if kind.package:
        pytest.importorskip(kind.package.replace("-", "_"))
    told: list[str] = []
    path = pipeline.export_torch(run, tmp_path / form, form, remark=told.append)
    assert path.name == kind.file and path.stat().st_size > 1000
    assert "compared with torch" in told[1]
