"""Hugging Face models: built from their config by the `transformers` class that it names."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.artifacts import parse_json
from lowrank.artifacts.outside import is_file, is_plain
from lowrank.backends.checkpoint.location import Location
from lowrank.backends.checkpoint.shards import INDEX_FILE, indexed
from lowrank.backends.config_block import KEY, is_ours
from lowrank.backends.names import Fit, Reading, closest, fit_names, no_place
from lowrank.backends.not_whole import part_of_names
from lowrank.backends.torch.config_limits import check_config, few_parts
from lowrank.backends.torch.pickles import read_torch_file
from lowrank.backends.torch.trainer_file import TrainerFile
from lowrank.backends.weight_files import OLD_INDEX, weight_files
from lowrank.core.match import in_block
from lowrank.errors import ArtifactError, LowRankError, UnsupportedModel, first_line

WEIGHT_SUFFIXES = frozenset(
    [
        *(".safetensors", ".bin", ".pt", ".pth", ".pt2", ".onnx", ".data"),
        *(".h5", ".msgpack", ".ckpt", ".gguf", ".tflite", ".ot", ".pb"),
    ]
)
FREE_TABLES = 1 << 26
"""Numbers that a model may have beside its parameters, such as masks and positions."""
OTHER_FORMATS = {"onnx", "openvino", "coreml", "original"}
TOKENIZER_PATTERNS = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "*.model")


KINDS = ("huggingface", "checkpoint")
"""Of records: models that are built from a config."""


def read_config(path: Path, compressed: bool = False) -> Any:
    """The `transformers` config in a config.json.

    Args:
        path: the file.
        compressed: it may be of a model that was compressed here; the config is then that of the dense one.

    Raises:
        UnsupportedModel: if it is no JSON, names no model type, or needs code from outside `transformers`.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnsupportedModel(f"there is no {path}; give the config.json that belongs to the weights") from None
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path} is not a config.json ({first_line(error)}); copy it again") from None
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UnsupportedModel(
            f"{path}: the model type {kind!r} is not one that transformers knows by itself, and code that comes with a "
            "model is not run; give a state dict with --arch package.module:factory instead"
        )
    if is_ours(content):
        if not compressed:
            raise UnsupportedModel(
                f"{path} is of a model that lowrank has compressed already; give the original model instead, or cut a "
                "finished run further with `lowrank truncate`"
            )
        del content[KEY]
    if content.get(KEY):
        raise UnsupportedModel(
            f"{path} is of a quantised model; compress the model that it was made from, then quantise"
        )
    check_config(path, content)
    try:
        with quiet():
            return AutoConfig.for_model(**content)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedModel(
            f"{path}: transformers cannot build this config ({reason}); correct it, or copy it again"
        ) from None


def model_class(config: Any) -> Any:
    """The class that the config's `architectures` names, else the plain encoder or decoder of its type."""
    import transformers

    named = getattr(config, "architectures", None)
    for name in named if isinstance(named, list | tuple) else ():
        kind = getattr(transformers, str(name), None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            return kind
    try:
        with quiet():
            return transformers.AutoModel._model_mapping[type(config)]
    except KeyError:
        raise UnsupportedModel(
            f"transformers has no model class for the model type {config.model_type!r} and the architectures "
            f"{named!r}; correct them in config.json"
        ) from None


def as_saved(folder: Path, rebuild: Mapping[str, Any]) -> tuple[Any, torch.dtype]:
    """The config and the dtype of a model that was saved to a folder, as its record names them.

    Raises:
        ValueError: if the record names no dtype.
    """
    config = read_config(folder / "config.json", compressed=True)
    config.architectures = [rebuild["class"]]
    dtype = getattr(torch, rebuild["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{rebuild['dtype']!r} is no dtype")
    return config, dtype


def from_compressed(folder: Path, block: Mapping[str, Any]) -> nn.Module:
    """A compressed model that transformers has saved anew: the class that its config names, loaded by transformers.

    Raises:
        ArtifactError: if it cannot be.
    """
    from lowrank.backends.torch.quantizer import register

    register()
    try:
        config, _ = as_saved(folder, block["rebuild"])
        with quiet():
            return model_class(config).from_pretrained(str(folder), local_files_only=True, dtype="auto")
    except LowRankError:
        raise
    except Exception as error:
        raise ArtifactError(f"{folder} cannot be loaded ({first_line(error)}); save the model again") from None


def build_dense(config: Any, dtype: torch.dtype) -> nn.Module:
    """A model of the config's shapes, weights unset; random numbers elsewhere are not disturbed."""
    with quiet(), torch.random.fork_rng(devices=[]):
        return model_class(config)._from_config(config, dtype=dtype).eval()


def from_folder(folder: Path, config: Any) -> tuple[nn.Module, Reading]:
    """The trained model of a folder, and what was read of the tensors there.

    Raises:
        UnsupportedModel: if a file with weights is missing or damaged, or they are not those of the config.
    """
    shapes = check_safetensors(folder)
    if is_file(folder / OLD_INDEX) and not shapes:
        indexed(Location(str(folder)), OLD_INDEX)
    files = [] if shapes else weight_files(folder)
    state: dict[str, Tensor] = {}
    for path in files:
        if not is_file(path):
            raise UnsupportedModel(f"{path} is not there, but {OLD_INDEX} names it; download the whole model")
        content = read_torch_file(path, unsafe_pickle=False)
        state |= dict(content.weights) if isinstance(content, TrainerFile) else {}
    shapes = shapes or {name: tuple(tensor.shape) for name, tensor in state.items()}
    fit = check_sizes(folder, config, shapes)
    if not fit.is_changed:
        return _from_pretrained(folder, str(folder), config, None, fit)
    for path in weight_files(folder) if not files else ():
        state |= _tensors_of(path)
    return _from_pretrained(folder, None, config, {new: state[old] for old, new in fit.bare.items()}, fit)


def from_state(origin: Path, config: Any, state: Mapping[str, Tensor]) -> tuple[nn.Module, Reading]:
    """The model of a config with the tensors of a state dict in it, and what was read of them."""
    fit = check_sizes(origin, config, {name: tuple(tensor.shape) for name, tensor in state.items()})
    return _from_pretrained(origin, None, config, {new: state[old] for old, new in fit.bare.items()}, fit)


def _tensors_of(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@contextmanager
def buildable(origin: object) -> Iterator[None]:
    """Any error inside the block says that a config describes no model that transformers can build.

    Raises:
        UnsupportedModel: in its place.
    """
    try:
        yield
    except UnsupportedModel:
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"{origin}: transformers cannot build the model that config.json describes ({first_line(error)}); "
            "correct it"
        ) from None


def check_sizes(origin: Path, config: Any, stored: Mapping[str, tuple[int, ...]]) -> Fit:
    """How the stored names become those of the model that a config describes.

    Raises:
        UnsupportedModel: if the weights are not of the config's shapes, before memory is taken for them.
    """
    part = part_of_names(origin, stored)
    if part is not None:
        raise part.refused(origin)
    with buildable(origin), quiet(), torch.device("meta"), few_parts(origin, len(stored)):
        skeleton = model_class(config)(config)
    fit = fit_names(skeleton.state_dict(), stored, getattr(skeleton, "base_model_prefix", ""))
    stored = {new: stored[old] for old, new in fit.bare.items()}
    for name, parameter in skeleton.named_parameters():
        if name in stored and tuple(parameter.shape) != stored[name]:
            raise UnsupportedModel(
                f"{origin}: {name} has the shape {stored[name]}, but config.json says {tuple(parameter.shape)}; "
                "give the config.json that belongs to these weights"
            )
    wanted, there = sum(p.numel() for p in skeleton.parameters()), sum(math.prod(shape) for shape in stored.values())
    tables = sum(b.numel() for b in skeleton.buffers())
    if wanted > 2 * there or tables > FREE_TABLES + 16 * there:
        raise UnsupportedModel(
            f"{origin}: config.json describes {wanted + tables:,} numbers, but the checkpoint holds {there:,}; give "
            "the config.json that belongs to these weights, and all of their files"
        )
    return fit


def _from_pretrained(
    origin: Path, folder: str | None, config: Any, state: dict[str, Tensor] | None, fit: Fit
) -> tuple[nn.Module, Reading]:
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
            "weights and config.json belong together and that every shard is there"
        ) from None
    missing = sorted(str(name) for name in info["missing_keys"])
    matrices = {name for name, p in model.named_parameters() if p.dim() >= 2}
    lacking = [name for name in missing if name in matrices and in_block(name)]
    unexpected = sorted(str(name) for name in info["unexpected_keys"])
    unused = [name for name in unexpected if in_block(name) and name.endswith("weight")]
    if lacking or unused or info.get("mismatched_keys"):
        free = [*unexpected, *(name for name in fit.left if name not in fit.bare)]
        what = (
            f"the checkpoint lacks {lacking[0]}" + (f", and has {closest(lacking[0], free)}" if free else "")
            if lacking
            else f"{kind.__name__} has no place for {(unused or ['?'])[0]}"
        )
        raise UnsupportedModel(
            f"{origin}: {what} ({len(lacking)} block weights missing, {len(unused)} left over); give the "
            "config.json that belongs to these weights, and all of their files"
        )
    left = [*(name for name in fit.left if name not in fit.bare), *unexpected]
    return model.eval(), Reading(tuple(missing), (*fit.taken_off, *no_place(left)))


def _dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    return next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)


def check_safetensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a folder's shards; a damaged or missing one is refused before anything is built.

    Raises:
        UnsupportedModel: if one cannot be opened, or the index names a file that is not there.
    """
    index = folder / INDEX_FILE
    used = [path.name for path in weight_files(folder) if path.suffix == ".safetensors"]
    names = indexed(Location(str(folder))) if index.is_file() else used
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        if not is_file(folder / name):
            raise UnsupportedModel(f"{folder / name} is not there, but {index.name} names it; download the whole model")
        shapes |= open_safetensors(folder / name)
    return shapes


def open_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes in a safetensors file.

    Raises:
        UnsupportedModel: if it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UnsupportedModel(
            f"{path} cannot be read as safetensors ({first_line(error)}); it may be cut short: copy it again"
        ) from None
    odd = next((name for name in shapes if not is_plain(name)), None)
    if odd is not None:
        raise UnsupportedModel(f"{path} holds a tensor called {odd[:60]!r}, which is no name; rename it")
    return shapes


def belongings(folder: Path) -> tuple[Path, ...]:
    """Files and folders of a model folder besides weights: configs, tokenizer, licence, pooling."""
    return tuple(
        entry
        for entry in sorted(folder.iterdir())
        if entry.suffix not in WEIGHT_SUFFIXES
        and not entry.name.endswith(".index.json")
        and not entry.name.startswith((".", "__"))
        and entry.name not in OTHER_FORMATS
        # What a link to a folder, a pipe or a device leads to is not the model's.
        and (entry.is_file() or (entry.is_dir() and not entry.is_symlink()))
        and not (entry.is_dir() and ((entry / "analysis.json").exists() or entry.name.startswith("checkpoint-")))
    )


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files of a tokenizer in a folder that may hold anything else too."""
    files = {path for pattern in TOKENIZER_PATTERNS for path in folder.glob(pattern) if path.is_file()}
    return tuple(sorted(p for p in files if p.suffix in {".json", ".txt", ".model"}))


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
