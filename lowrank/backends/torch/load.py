"""`load`: a saved model back from its folder, without the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.artifacts.files import RECORD_FILE, read_json
from lowrank.backends.torch import huggingface
from lowrank.backends.torch.layers import dense_layer, empty_replacement, put, register_optional_layers, tie
from lowrank.backends.torch.module import MODEL_FILE
from lowrank.backends.torch.normalize import normalize_
from lowrank.backends.torch.open import build_arch
from lowrank.backends.torch.pickles import read_program
from lowrank.backends.torch.program import PROGRAM_FILE, unflatten
from lowrank.backends.torch.replace import undone_on_error
from lowrank.errors import ArtifactError, LowRankError, first_line


def load(folder: str | Path, *, arch: str | Callable[[], nn.Module] | None = None) -> nn.Module | dict[str, Tensor]:
    """A compressed model, in evaluation mode, with exactly the outputs it had when it was saved.

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
    path = Path(folder).expanduser()
    if not (path / RECORD_FILE).is_file() and ((path / "model").is_dir() or (path / "plan.json").is_file()):
        path = path / "model"
    record = read_json(path / RECORD_FILE, "model")
    try:
        return _load(path, record, arch)
    except (KeyError, TypeError, AttributeError, ValueError, AssertionError, IndexError, RuntimeError) as error:
        if isinstance(error, LowRankError):
            raise
        raise ArtifactError(
            f"{path / RECORD_FILE} does not describe the model beside it ({type(error).__name__}: "
            f"{first_line(error)}); "
            "compress the original again"
        ) from None


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
        return {**state, **{alias: state[kept] for alias, kept in record["aliases"].items()}}
    else:
        name = rebuild.get("arch") or rebuild.get("class")
        raise ArtifactError(
            f"{path}: building the module takes code, and none is taken from a folder; pass arch=... with what "
            f"builds the "
            f"dense module ({name})"
        )
    return fill(dense, state, record["replaced"], record["aliases"], path).eval()


def _check_sizes(origin: str, layer: str, entry: Mapping[str, Any], most: int) -> None:
    """No layer is larger than the one that it takes the place of, whatever the record says."""
    for size in (entry["rank"], *entry.get("shape", ())):
        if not isinstance(size, int) or not 0 <= size <= most:
            raise ArtifactError(
                f"{origin} gives {layer} the size {str(size)[:40]}, and its dense layer has at most "
                f"{most:,}; compress the original again"
            )


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
    _place(module, replaced, origin)
    full = {**state, **{alias: state[kept] for alias, kept in aliases.items()}}
    try:
        module.load_state_dict(full, assign=True)
    except RuntimeError as error:
        raise ArtifactError(
            f"{origin}: the saved tensors do not fit the module: {' '.join(str(error).split())[:300]}"
        ) from None
    # Assignment gives every name its own parameter object: tie them again.
    for alias, kept in aliases.items():
        owner, _, key = alias.rpartition(".")
        source, _, source_key = kept.rpartition(".")
        setattr(module.get_submodule(owner), key, getattr(module.get_submodule(source), source_key))
    return module


def _place(module: nn.Module, replaced: Mapping[str, Any], origin: Path) -> None:
    """Empty low-rank layers in the places that the record names; one module under two names gets one."""
    register_optional_layers()
    normalize_(module)
    empty_layers_(module, replaced, f"{origin / RECORD_FILE}")


def prepare_layers_(module: nn.Module, replaced: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Empty low-rank layers in a dense module; layers that are split are those that hold one of them.

    Raises:
        ArtifactError: if they are of another module.
    """
    register_optional_layers()
    try:
        places = [str(layer) for entry in replaced.values() for layer in entry["layers"]]
        with undone_on_error(module), torch.random.fork_rng(devices=[]):
            normalize_(module, lambda name: any(place.startswith(f"{name}.") for place in places))
            empty_layers_(module, replaced, "the record of layers")
    except (KeyError, TypeError, AttributeError, ValueError, AssertionError, IndexError, RuntimeError) as error:
        if isinstance(error, LowRankError):
            raise
        raise ArtifactError(
            f"the layers are not of this {type(module).__name__} ({type(error).__name__}: {first_line(error)}); give "
            "the dense module that was compressed, built anew"
        ) from None
    return module


def empty_layers_(module: nn.Module, replaced: Mapping[str, Mapping[str, Any]], origin: str) -> None:
    """Put a layer in each place that a record names, and tie those of one weight."""
    made: set[int] = set()
    for entry in replaced.values():
        first: Any = None
        for layer in entry["layers"]:
            if entry["kind"] != "experts" and id(module.get_submodule(layer)) in made:
                # One module under two names.
                continue
            old, form, dense = dense_layer(module, layer, entry["kind"], entry["stored"])
            if form.kind == "linear" and entry["kind"] == "linear" and form.view.stored != entry["stored"]:
                raise ArtifactError(
                    f"{origin}: {layer} stores its weight as {form.view.stored!r}, but its factors were made without "
                    "knowing the module; compress again with --arch or --config"
                )
            _check_sizes(origin, layer, entry, max(form.view.shape(dense.shape)))
            new = empty_replacement(old, entry, dense, form)
            if first is not None:
                tie(new, first)
            first = first or new
            made.add(id(new))
            put(module, layer, new)
