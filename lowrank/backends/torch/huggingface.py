"""Hugging Face models: built from their config by the `transformers` class that it names."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import UnsupportedModel, first_line

WEIGHT_SUFFIXES = set(
    [
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".pt2",
        ".onnx",
        ".data",
        ".h5",
        ".msgpack",
        ".ckpt",
        ".gguf",
        ".tflite",
        ".ot",
        ".pb",
    ]
)
OTHER_FORMATS = {"onnx", "openvino", "coreml", "original"}
TOKENIZER_PATTERNS = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "*.model")


def read_config(path: Path) -> Any:
    """The `transformers` config in a config.json.

    Raises:
        UnsupportedModel: if it is no JSON, names no model type, or needs code from outside `transformers`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnsupportedModel(f"there is no {path}; give the config.json that belongs to the weights") from None
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path} is not a config.json ({first_line(error)}); copy it again") from None
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in CONFIG_MAPPING:
        raise UnsupportedModel(
            f"{path}: the model type {kind!r} is not one that transformers knows by itself, and code that comes with a "
            "model is not run; give a state dict with --arch package.module:factory instead"
        )
    try:
        with quiet():
            return AutoConfig.for_model(**content)
    except Exception as error:
        raise UnsupportedModel(f"{path}: transformers cannot build this config: {first_line(error)}") from None


def model_class(config: Any) -> Any:
    """The class that the config's `architectures` names, else the plain encoder or decoder of its type."""
    import transformers

    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    with quiet():
        return transformers.AutoModel._model_mapping[type(config)]


def build_dense(config: Any, dtype: torch.dtype) -> nn.Module:
    """A model of the config's shapes, weights unset; random numbers elsewhere are not disturbed."""
    with quiet(), torch.random.fork_rng(devices=[]):
        return model_class(config)._from_config(config, dtype=dtype).eval()


def from_folder(folder: Path, config: Any) -> tuple[nn.Module, tuple[str, ...]]:
    """The trained model of a folder, and the names of tensors that the checkpoint did not have."""
    check_safetensors(folder)
    return _from_pretrained(folder, str(folder), config, None)


def from_state(origin: Path, config: Any, state: Mapping[str, Tensor]) -> tuple[nn.Module, tuple[str, ...]]:
    """The model of a config with the tensors of a state dict in it, and the names that it did not have."""
    return _from_pretrained(origin, None, config, dict(state))


def _from_pretrained(
    origin: Path, folder: str | None, config: Any, state: dict[str, Tensor] | None
) -> tuple[nn.Module, tuple[str, ...]]:
    kind = model_class(config)
    try:
        # What the checkpoint lacks is drawn at random: always the same, and without disturbing anyone's numbers.
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, info = kind.from_pretrained(
                folder,
                config=config,
                state_dict=state,
                local_files_only=True,
                dtype="auto" if state is None else _dtype_of(state),
                output_loading_info=True,
            )
    except Exception as error:
        raise UnsupportedModel(
            f"{origin}: transformers could not load {kind.__name__} from it: {first_line(error)}; check that "
            f"weights and "
            "config.json belong together and that every shard is there"
        ) from None
    missing = sorted(str(name) for name in info["missing_keys"])
    if info.get("mismatched_keys"):
        raise UnsupportedModel(
            f"{origin}: {len(info['mismatched_keys'])} tensors have other shapes than config.json says, "
            f"{info['mismatched_keys'][0]} for one; give the config.json that belongs to these weights"
        )
    matrices = sum(p.dim() >= 2 for p in model.parameters())
    lacking = [name for name in missing if model.get_parameter_or_buffer(name).dim() >= 2]
    if matrices and len(lacking) * 2 > matrices:
        raise UnsupportedModel(
            f"{origin}: {len(lacking)} of the {matrices} matrices of {kind.__name__} are not in the checkpoint, "
            f"{lacking[0]} for one; the weights belong to another model than config.json"
        )
    return model.eval(), tuple(missing)


def _dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    return next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)


def check_safetensors(folder: Path) -> None:
    """Refuse a damaged or missing shard with its name, before anything is built.

    Raises:
        UnsupportedModel: if one cannot be opened, or the index names a file that is not there.
    """
    index = folder / "model.safetensors.index.json"
    names = {path.name for path in folder.glob("*.safetensors")}
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UnsupportedModel(f"{index} is not a shard index ({first_line(error)}); copy it again") from None
    for name in sorted(names):
        if Path(name).name != name:
            raise UnsupportedModel(f"{index} names {name!r}, which is outside its folder; that is refused")
        open_safetensors(folder / name)


def open_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes in a safetensors file.

    Raises:
        UnsupportedModel: if it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UnsupportedModel(
            f"{path} cannot be read as safetensors ({first_line(error)}); it may be cut short: copy it again"
        ) from None


def belongings(folder: Path) -> tuple[Path, ...]:
    """What lies in a model folder besides weights: configs, tokenizer, licence, pooling."""
    return tuple(
        entry
        for entry in sorted(folder.iterdir())
        if entry.suffix not in WEIGHT_SUFFIXES
        and not entry.name.endswith(".index.json")
        and not entry.name.startswith((".", "__"))
        and entry.name not in OTHER_FORMATS
    )


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files of a tokenizer in a folder that may hold anything else too."""
    found = {path for pattern in TOKENIZER_PATTERNS for path in folder.glob(pattern) if path.is_file()}
    return tuple(sorted(p for p in found if p.suffix in {".json", ".txt", ".model"}))


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers without its progress bars and advice; its errors still come as exceptions."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
