"""From a path to a torch backend: which kind of file it is, and how its model is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowrank.artifacts.files import RECORD_FILE, hash_files, hash_json
from lowrank.backends.base import Opening, already_compressed
from lowrank.backends.beside import with_pooling
from lowrank.backends.inputs import Signature
from lowrank.backends.names import Reading
from lowrank.backends.not_whole import one_of_several, part_in_folder, part_of_names
from lowrank.backends.torch import huggingface, inputs, lora
from lowrank.backends.torch.arch import build_arch
from lowrank.backends.torch.fitted import HALF, fit_state_
from lowrank.backends.torch.inputs import name_of
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.normalize import normalize_
from lowrank.backends.torch.pickles import read_program, read_torch_file
from lowrank.backends.torch.products import multiplied
from lowrank.backends.torch.program import set_as_used_, unflatten
from lowrank.backends.torch.state_dict import StateDictBackend
from lowrank.backends.torch.tensors import copied, hash_state
from lowrank.backends.torch.trainer_file import TrainerFile, weights_named
from lowrank.backends.torch.untrained import judged_by_trained, untrained_in
from lowrank.backends.weight_files import has_index, is_foreign, is_weights, weight_files
from lowrank.core.listing import listed
from lowrank.errors import UnsupportedModel

TorchBackend = ModuleBackend | StateDictBackend


def open_path(path: Path, opening: Opening) -> TorchBackend:
    """The backend for a folder or file that exists.

    Raises:
        UnsupportedModel: if it cannot be read or built; the message says what to try.
    """
    if (opening.arch or opening.config or opening.weights) and (path.is_dir() or path.suffix == ".pt2"):
        raise UnsupportedModel(f"{path} says itself how its model is built; leave --arch, --config and --weights out")
    if path.is_dir():
        return _open_folder(path, opening)
    if (path.parent / RECORD_FILE).is_file():
        raise already_compressed(f"{path} is of")
    if path.suffix == ".pt2":
        return _open_program(path, opening)
    stored = path.suffix == ".safetensors"
    content = (
        weights_named(_read_safetensors(path), opening.weights)
        if stored
        else read_torch_file(path, opening.unsafe_pickle, opening.weights)
    )
    if isinstance(content, nn.Module):
        source = {"path": str(path), "kind": "module", "fingerprint": hash_files([path])}
        return _of_module(content.eval(), source, {"kind": "module", "class": type(content).__qualname__}, opening)
    backend = _open_weights(path, content, opening)
    known = dict(backend.source)
    if opening.weights is not None:
        known["fingerprint"] = hash_json([known["fingerprint"], opening.weights])
    notes = [*one_of_several(path), *content.notes, *known.get("notes", ())]
    return replace(backend, source={**known, **({"notes": notes} if notes else {})})


def _open_weights(path: Path, file: TrainerFile, opening: Opening) -> TorchBackend:
    """The backend for the weights in a file that is not a module."""
    if opening.arch:
        return _open_with_arch(path, file.weights, opening.arch, opening)
    beside = path.parent / "config.json"
    config = Path(opening.config) if opening.config else beside
    foreign = path.suffix == ".safetensors" and is_foreign(beside)
    if opening.config or (path.suffix == ".safetensors" and beside.is_file() and not foreign):
        return _open_with_config(path, file.weights, config.resolve(), opening)
    _refuse_lora(path, opening)
    part = part_of_names(path, {name: tuple(tensor.shape) for name, tensor in file.weights.items()})
    if part is not None:
        raise part.refused(path)
    source: dict[str, Any] = {"path": str(path), "kind": "state_dict", "fingerprint": hash_files([path])}
    tensors, products = multiplied(file.weights)
    notes: list[str] = []
    if foreign:
        notes.append(
            f"{beside} names no model type of transformers, so the weights are taken by their names alone; --arch "
            "package.module:factory says how the model is built"
        )
    if products:
        kinds = " and ".join(sorted({product.kind for product in products}))
        notes.append(
            f"{len(products)} weights are stored as parts ({kinds}); their products, which the layers apply, took the "
            f"places of the parts: {listed([product.name for product in products])}"
        )
    return StateDictBackend(tensors, {**source, **({"notes": notes} if notes else {})})


def open_module(model: object, opening: Opening | None = None) -> ModuleBackend:
    """The backend for a live module; it is not changed, and it is looked at in evaluation mode.

    Raises:
        UnsupportedModel: if it is no `nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"a {type(model).__name__} is not a model; give a path or a torch.nn.Module")
    rebuild = {"kind": "module", "class": type(model).__qualname__}
    module = copied(model)
    source = {"path": None, "kind": "live", "fingerprint": hash_json([hash_state(module.state_dict()), repr(model)])}
    return _of_module(module.eval(), source, rebuild, opening or Opening())


def _open_folder(folder: Path, opening: Opening) -> TorchBackend:
    if (folder / RECORD_FILE).is_file():
        raise already_compressed(f"{folder} holds")
    part = part_in_folder(folder, (entry.name for entry in folder.iterdir()))
    if part is not None:
        raise part.refused(folder)
    if not (folder / "config.json").is_file():
        raise UnsupportedModel(
            f"{folder} holds no config.json, so it is no Hugging Face model; give the weights file inside it, "
            "with --config or --arch to say how the model is built"
        )
    used = weight_files(folder)
    if not used and not has_index(folder):
        other = next((path for path in sorted(folder.iterdir()) if is_weights(path)), None)
        remedy = f"give {other} with --config {folder / 'config.json'}" if other else "download the whole model"
        raise UnsupportedModel(f"{folder} holds no weights: no model.safetensors, no pytorch_model.bin; {remedy}")
    if is_foreign(folder / "config.json") and len(used) == 1:
        return open_path(used[0], opening)
    config = huggingface.read_config(folder / "config.json")
    module, reading = huggingface.from_folder(folder, config)
    return _of_transformers(
        module, folder, folder, [*used, folder / "config.json"], reading, huggingface.belongings(folder), opening
    )


def _open_with_config(path: Path, state: Mapping[str, Tensor], config_path: Path, opening: Opening) -> ModuleBackend:
    config = huggingface.read_config(config_path)
    module, reading = huggingface.from_state(path, config, state)
    extras = (config_path, *huggingface.tokenizer_files(config_path.parent))
    backend = _of_transformers(module, path, config_path.parent, [path, config_path], reading, extras, opening)
    return replace(backend, config_file=config_path)


def _of_transformers(
    module: Any,
    path: Path,
    folder: Path,
    files: list[Path],
    reading: Reading,
    extras: tuple[Path, ...],
    opening: Opening,
) -> ModuleBackend:
    source: dict[str, Any] = {"path": str(path), "kind": "huggingface", "fingerprint": hash_files(files)}
    module, source = _with_lora(module, source, opening)
    normalize_(module)
    if reading.missing:
        source["not_in_checkpoint"] = list(reading.missing)
    if reading.notes:
        source["notes"] = list(reading.notes)
    untrained = untrained_in(module, reading.missing)
    rebuild = {"kind": "huggingface", "class": type(module).__name__, "dtype": inputs.name_of(module.dtype)}
    return ModuleBackend(
        module=module,
        source=source,
        signature=judged_by_trained(with_pooling(inputs.of_running(module), folder), module, untrained),
        rebuild={**rebuild, **({"untrained": untrained} if untrained else {})},
        tokenizer=folder if huggingface.tokenizer_files(folder) else None,
        extras=extras,
    )


def _open_with_arch(path: Path, state: Mapping[str, Tensor], arch: str, opening: Opening) -> ModuleBackend:
    module = build_arch(arch)
    reading = fit_state_(module, state, path, arch)
    fingerprint = hash_json([hash_files([path]), repr(module)])
    source: dict[str, Any] = {"path": str(path), "kind": "arch", "arch": arch, "fingerprint": fingerprint}
    if reading.notes:
        source["notes"] = list(reading.notes)
    return _of_module(module, source, {"kind": "arch", "arch": arch}, opening)


def _of_module(
    module: nn.Module, source: Mapping[str, Any], rebuild: Mapping[str, Any], opening: Opening
) -> ModuleBackend:
    module, source = _with_lora(module, dict(source), opening)
    normalize_(module)
    if hasattr(module, "config") and hasattr(module, "main_input_name"):
        signature = judged_by_trained(inputs.of_running(module), module, untrained_in(module))
        return ModuleBackend(module, source, signature, rebuild)
    signature = inputs.of_module(module)
    half = next((p.dtype for p in module.parameters() if p.dtype in HALF), None)
    if half is None or isinstance(signature, Signature):
        return ModuleBackend(module, source, signature, rebuild)
    # Its code makes numbers of float32 beside those of the file, for all that is known.
    signature, mixed = inputs.of_module(module, name_of(half)), {**rebuild, "autocast": name_of(half)}
    return ModuleBackend(module, source, signature, mixed)


def _with_lora(module: Any, source: dict[str, Any], opening: Opening) -> tuple[Any, dict[str, Any]]:
    """A module with the adapter in it that was asked for, if one was, and what tells it from the module without."""
    if opening.lora is None:
        return module, source
    folder = Path(opening.lora).expanduser().resolve()
    merged = lora.merge(module, folder)
    files = sorted(path for path in folder.iterdir() if path.suffix in {".json", ".safetensors", ".bin"})
    return merged, {**source, "lora": str(folder), "fingerprint": hash_json([source["fingerprint"], hash_files(files)])}


def _refuse_lora(path: Path, opening: Opening) -> None:
    if opening.lora is not None:
        raise UnsupportedModel(
            f"{path}: an adapter can only be merged into a model that can be built; give its Hugging Face folder, or "
            "say with --arch or --config how it is built"
        )


def _open_program(path: Path, opening: Opening) -> ModuleBackend:
    _refuse_lora(path, opening)
    program = read_program(path, opening.unsafe_pickle)
    source: dict[str, Any] = {"path": str(path), "kind": "program", "fingerprint": hash_files([path])}
    if notes := set_as_used_(program):
        source["notes"] = list(notes)
    module = unflatten(program)
    return ModuleBackend(
        module=module,
        source=source,
        signature=inputs.with_outputs(inputs.of_program(program), module),
        rebuild={"kind": "program"},
        fresh=lambda: unflatten(program),
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not huggingface.open_safetensors(path):
        raise UnsupportedModel(f"{path} holds no tensors; save the model again")
    from safetensors.torch import load_file

    return load_file(path)
