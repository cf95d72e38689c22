"""`load`: a saved model back from its folder, without the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowrank.artifacts.files import RECORD_FILE, read_json
from lowrank.backends.config_block import read_block
from lowrank.backends.torch import huggingface
from lowrank.backends.torch.arch import build_arch
from lowrank.backends.torch.normalize import normalize_
from lowrank.backends.torch.pickles import read_program
from lowrank.backends.torch.program import PROGRAM_FILE, unflatten
from lowrank.backends.torch.replace import put_layers
from lowrank.backends.torch.tensors import MODEL_FILE
from lowrank.errors import ArtifactError, misfit


def load(folder: str | Path, *, arch: str | Callable[[], nn.Module] | None = None) -> nn.Module | dict[str, Tensor]:
    """A compressed model, in evaluation mode, with exactly the outputs it had when it was saved.

    A module of `--arch` whose code does not run in the 16 bits that it is stored in comes in float32.

    Args:
        folder: a run, or the `model` folder in it.
        arch: builds the dense module (`package.module:factory`, or a callable). Needed, as no code is ever taken
            from a folder, for a model that came as a module or with `--arch`.

    Returns:
        The module; for a plain state dict without `arch`, the factored state dict.

    Raises:
        ArtifactError: if the folder holds no saved model, or it needs `arch`.

    Example:
        model = lowrank.load("lowrank-run")
    """
    module, record = _loaded(folder, arch)
    # What its code computes in float32 as well cannot be run in 16 bits as it is.
    return module.float() if record["rebuild"].get("autocast") and isinstance(module, nn.Module) else module


def load_stored(folder: str | Path, arch: str | Callable[[], nn.Module] | None = None) -> nn.Module | dict[str, Tensor]:
    """The same with all numbers in the types that they are stored in."""
    return _loaded(folder, arch)[0]


def _loaded(
    folder: str | Path, arch: str | Callable[[], nn.Module] | None
) -> tuple[nn.Module | dict[str, Tensor], Mapping[str, Any]]:
    path = Path(folder).expanduser()
    if not (path / RECORD_FILE).is_file() and ((path / "model").is_dir() or (path / "plan.json").is_file()):
        path = path / "model"
    block = None if (path / RECORD_FILE).is_file() else read_block(path)
    if block is not None:
        # `save_pretrained` wrote it.
        return huggingface.from_compressed(path, block), block
    record = read_json(path / RECORD_FILE, "model")
    with misfit(f"{path / RECORD_FILE} does not describe the model beside it"):
        module = _load(path, record, arch)
        if record["rebuild"]["kind"] in huggingface.KINDS and isinstance(module, nn.Module):
            from lowrank.backends.torch.quantizer import attach

            attach(module, record)
        return module, record


def _load(
    path: Path, record: Mapping[str, Any], arch: str | Callable[[], nn.Module] | None
) -> nn.Module | dict[str, Tensor]:
    rebuild: Mapping[str, Any] = record["rebuild"]
    if rebuild["kind"] == "program":
        return unflatten(read_program(path / PROGRAM_FILE, unsafe_pickle=False)).eval()
    if rebuild["kind"] == "onnx":
        raise ArtifactError(f"{path} is of an ONNX model: open {path.parent / 'model.onnx'} with onnxruntime")
    if rebuild["kind"] == "checkpoint":
        from lowrank.backends.checkpoint.load import load_checkpoint

        return load_checkpoint(path, record)
    state = read_state(path / MODEL_FILE)
    if arch is not None:
        dense = build_arch(arch) if isinstance(arch, str) else arch().eval()
    elif rebuild["kind"] == "huggingface":
        config, dtype = huggingface.as_saved(path, rebuild)
        dense = huggingface.build_dense(config, dtype)
    elif rebuild["kind"] == "state_dict":
        return {**state, **{alias: state[name] for alias, name in record["aliases"].items()}}
    else:
        name = rebuild.get("arch") or rebuild.get("class")
        raise ArtifactError(
            f"{path}: building the module takes code, and none is taken from a folder; pass arch=... with what "
            f"builds the dense module ({name})"
        )
    return fill(dense, state, record["replaced"], record["aliases"], path).eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as copies.

    Raises:
        UnsupportedModel: if it is missing or damaged.
    """
    from safetensors.torch import load_file

    huggingface.open_safetensors(path)
    # Copies: tensors that are views of a file start at odd addresses, where kernels round differently.
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def fill(
    module: nn.Module,
    state: Mapping[str, Tensor],
    replaced: Mapping[str, Any],
    aliases: Mapping[str, str],
    origin: Path,
) -> nn.Module:
    """Low-rank layers in the places that the record names, then every tensor, then the ties."""
    normalize_(module)
    put_layers(module, replaced, origin)
    full = {**state, **{alias: state[name] for alias, name in aliases.items()}}
    try:
        module.load_state_dict(full, assign=True)
    except RuntimeError as error:
        raise ArtifactError(
            f"{origin}: the saved tensors do not fit the module: {' '.join(str(error).split())[:300]}"
        ) from None
    # Assignment gives every name its own parameter object: tie them again.
    for alias, name in aliases.items():
        owner, _, key = alias.rpartition(".")
        source, _, source_key = name.rpartition(".")
        setattr(module.get_submodule(owner), key, getattr(module.get_submodule(source), source_key))
    return module
