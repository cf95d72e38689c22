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
from lowrank.backends.torch import huggingface, inputs, lora
from lowrank.backends.torch.arch import build_arch
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.normalize import normalize_
from lowrank.backends.torch.pickles import read_program, read_torch_file
from lowrank.backends.torch.program import unflatten
from lowrank.backends.torch.state_dict import StateDictBackend
from lowrank.backends.torch.tensors import copied, hash_state
from lowrank.errors import UnsupportedModel

TorchBackend = ModuleBackend | StateDictBackend


def open_path(path: Path, opening: Opening) -> TorchBackend:
    """The backend for a folder or file that exists.

    Raises:
        UnsupportedModel: if it cannot be read or built; the message says what to try.
    """
    if (opening.arch or opening.config) and (path.is_dir() or path.suffix == ".pt2"):
        raise UnsupportedModel(f"{path} says itself how its model is built; leave --arch and --config out")
    if path.is_dir():
        return _open_folder(path, opening)
    if (path.parent / RECORD_FILE).is_file():
        raise already_compressed(f"{path} is of")
    if path.suffix == ".pt2":
        return _open_program(path, opening)
    stored = path.suffix == ".safetensors"
    content = _read_safetensors(path) if stored else read_torch_file(path, opening.unsafe_pickle)
    if isinstance(content, nn.Module):
        source = {"path": str(path), "kind": "module", "fingerprint": hash_files([path])}
        return _of_module(content.eval(), source, {"kind": "module", "class": type(content).__qualname__}, opening)
    if opening.arch:
        return _open_with_arch(path, content, opening.arch, opening)
    beside = path.parent / "config.json"
    config = Path(opening.config) if opening.config else beside
    if opening.config or (stored and beside.is_file()):
        return _open_with_config(path, content, config.resolve(), opening)
    _refuse_lora(path, opening)
    return StateDictBackend(content, {"path": str(path), "kind": "state_dict", "fingerprint": hash_files([path])})


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


def _open_folder(folder: Path, opening: Opening) -> ModuleBackend:
    if (folder / RECORD_FILE).is_file():
        raise already_compressed(f"{folder} holds")
    if not (folder / "config.json").is_file():
        raise UnsupportedModel(
            f"{folder} holds no config.json, so it is no Hugging Face model; give the weights file inside it, "
            "with --config or --arch to say how the model is built"
        )
    weights = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".bin"} and p.is_file())
    if not weights:
        raise UnsupportedModel(f"{folder} holds no weights: no .safetensors and no .bin file; download the whole model")
    config = huggingface.read_config(folder / "config.json")
    module, missing = huggingface.from_folder(folder, config)
    used = [p for p in weights if p.suffix == ".safetensors"] or weights
    return _of_transformers(
        module, folder, folder, [*used, folder / "config.json"], missing, huggingface.belongings(folder), opening
    )


def _open_with_config(path: Path, state: Mapping[str, Tensor], config_path: Path, opening: Opening) -> ModuleBackend:
    config = huggingface.read_config(config_path)
    module, missing = huggingface.from_state(path, config, state)
    extras = (config_path, *huggingface.tokenizer_files(config_path.parent))
    backend = _of_transformers(module, path, config_path.parent, [path, config_path], missing, extras, opening)
    return replace(backend, config_file=config_path)


def _of_transformers(
    module: Any,
    path: Path,
    folder: Path,
    files: list[Path],
    missing: tuple[str, ...],
    extras: tuple[Path, ...],
    opening: Opening,
) -> ModuleBackend:
    source: dict[str, Any] = {"path": str(path), "kind": "huggingface", "fingerprint": hash_files(files)}
    module, source = _with_lora(module, source, opening)
    normalize_(module)
    if missing:
        source["not_in_checkpoint"] = list(missing)
    return ModuleBackend(
        module=module,
        source=source,
        signature=with_pooling(inputs.of_transformers(module), folder),
        rebuild={"kind": "huggingface", "class": type(module).__name__, "dtype": inputs.name_of(module.dtype)},
        tokenizer=folder if huggingface.tokenizer_files(folder) else None,
        extras=extras,
    )


def _open_with_arch(path: Path, state: Mapping[str, Tensor], arch: str, opening: Opening) -> ModuleBackend:
    module = build_arch(arch)
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UnsupportedModel(
            f"{path} does not fit the module that {arch} builds: {' '.join(lines[1:3]) or lines[0]}"[:400]
        ) from None
    fingerprint = hash_json([hash_files([path]), repr(module)])
    source = {"path": str(path), "kind": "arch", "arch": arch, "fingerprint": fingerprint}
    return _of_module(module, source, {"kind": "arch", "arch": arch}, opening)


def _of_module(
    module: nn.Module, source: Mapping[str, Any], rebuild: Mapping[str, Any], opening: Opening
) -> ModuleBackend:
    module, source = _with_lora(module, dict(source), opening)
    normalize_(module)
    if hasattr(module, "config") and hasattr(module, "main_input_name"):
        return ModuleBackend(module, source, inputs.of_transformers(module), rebuild)
    return ModuleBackend(module, source, inputs.of_module(module), rebuild)


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
    source = {"path": str(path), "kind": "program", "fingerprint": hash_files([path])}
    return ModuleBackend(
        module=unflatten(program),
        source=source,
        signature=inputs.of_program(program),
        rebuild={"kind": "program"},
        fresh=lambda: unflatten(program),
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not huggingface.open_safetensors(path):
        raise UnsupportedModel(f"{path} holds no tensors; save the model again")
    from safetensors.torch import load_file

    return load_file(path)
