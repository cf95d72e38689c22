"""What transformers asks for a compressed model: a config for its block, and a quantizer that builds its layers.

Nothing here is rounded. Quantizers are the one place where transformers lets a package change a model's layers between
building the empty model and reading its tensors; `import lowrank` registers this one, in the middle of the import of
transformers. So what takes models is imported when there is one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lowrank.artifacts.files import SCHEMA_MAJOR, SCHEMA_MINOR
from lowrank.backends.config_block import KEY, METHOD, REFUSED, REFUSING, RUN_ONLY, SCHEMA, is_block
from lowrank.backends.torch.inputs import name_of
from lowrank.backends.torch.normalize import normalize_
from lowrank.backends.torch.replace import put_layers
from lowrank.errors import ArtifactError, misfit
from lowrank.nn import LowRankEmbedding, LowRankLinear

ALIGNED = 64
"""Bytes: tensors that start elsewhere, as views of a file do, are rounded differently by some kernels."""
SIDES = ("left", "right")


class LowRankConfig(QuantizationConfigMixin):
    """The block as an object.

    Args:
        rebuild: how the dense model is built.
        replaced: for each weight what takes its place.
        aliases: tensors that are not stored: for each the name of the one that it shares.
        schema: of the block.
        unused: what transformers adds.
    """

    def __init__(
        self,
        rebuild: Mapping[str, Any] | None = None,
        replaced: Mapping[str, Any] | None = None,
        aliases: Mapping[str, str] | None = None,
        schema: str = f"{SCHEMA}/{SCHEMA_MAJOR}.{SCHEMA_MINOR}",
        **unused: Any,
    ) -> None:
        name, _, version = str(schema).partition("/")
        if name != SCHEMA or version.split(".")[0] != str(SCHEMA_MAJOR):
            raise ArtifactError(
                f"the {KEY} of config.json has the schema {str(schema)[:40]!r}, and this lowrank reads {SCHEMA}/"
                f"{SCHEMA_MAJOR}.x; install the version that wrote it, or compress the original again"
            )
        self.quant_method: Any = METHOD
        self.schema = schema
        self.rebuild, self.replaced, self.aliases = dict(rebuild or {}), dict(replaced or {}), dict(aliases or {})

    def to_dict(self) -> dict[str, Any]:
        """The block as it is written, which transformers refuses where lowrank is not imported."""
        return {**super().to_dict(), **REFUSED}


class LowRankQuantizer(HfQuantizer):
    """Puts empty low-rank layers into an empty model; their tensors are then read as any others are."""

    requires_calibration = True
    """A dense model does not become a compressed one by being loaded."""
    quantization_config: LowRankConfig

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config, origin = self.quantization_config, getattr(model, "name_or_path", "") or type(model).__name__
        with misfit(f"{origin}: the {KEY} of config.json does not describe a {type(model).__name__}"):
            if config.rebuild["kind"] == "huggingface":
                normalize_(model)
            fitted = _fitted(model, config)
            names = put_layers(model, fitted.replaced, origin)
        if config.replaced and not names:
            raise ArtifactError(
                f"{origin}: none of the {len(config.replaced)} compressed layers is in a {type(model).__name__}; load "
                f"it as a {config.rebuild.get('class')}"
            )
        for name in names:
            # Their factors are read or drawn one by one; their product would be for nothing.
            _flag(model.get_submodule(name))
        self.quantization_config = fitted
        _follow_ties(model, fitted)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        _align_(model)
        # Its numbers are ordinary ones: it may be cast, trained and compiled.
        model.is_quantized = False
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[None, dict[str, str]]:
        """Nothing of its own; called before the config is saved, so it is renewed here."""
        renew(model, self.quantization_config)
        return None, {}

    def is_serializable(self) -> Any:
        """Whether it can be saved: as any other model."""
        return True

    @property
    def is_trainable(self) -> Any:
        """Whether it can be trained with adapters."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether it can be trained without adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether `torch.compile` takes it."""
        return True


def register() -> None:
    """Make the config and the quantizer known to transformers; again does nothing."""
    from transformers.quantizers import auto

    if METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        auto.register_quantization_config(METHOD)(LowRankConfig)
        known: dict[str, Any] = auto.AUTO_QUANTIZATION_CONFIG_MAPPING
        known[REFUSING] = _recognising(known.get(REFUSING))
    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantizer(METHOD)(LowRankQuantizer)


def _recognising(other: Any) -> Any:
    """The config class of a method, as far as transformers has one, behind one that knows blocks of lowrank."""

    class Recognising(other or QuantizationConfigMixin):  # type: ignore[misc]
        @classmethod
        def from_dict(cls, config_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            kind = LowRankConfig if is_block(config_dict) else other or QuantizationConfigMixin
            return kind.from_dict(config_dict, *args, **kwargs)

    return Recognising


def attach_inside(root: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Let every model of transformers in a live module be saved with the low-rank layers that were put in it.

    Args:
        root: such a model, or a module that holds some, as one of sentence-transformers does.
        layers: for each weight of the root what takes its place.
    """
    from transformers import PreTrainedModel

    outer = list[str]()
    for path, module in root.named_modules():
        if not isinstance(module, PreTrainedModel) or any(path.startswith(before) for before in outer):
            continue
        prefix = f"{path}." if path else ""
        outer.append(prefix)
        own = {
            name.removeprefix(prefix): _in_names_of(prefix, entry)
            for name, entry in layers.items()
            if all(layer.startswith(prefix) for layer in entry["layers"])
        }
        if own:
            before = getattr(getattr(module, "hf_quantizer", None), "quantization_config", None)
            earlier = before.replaced if isinstance(before, LowRankConfig) else {}
            rebuild = {"kind": "huggingface", "class": type(module).__name__, "dtype": name_of(module.dtype)}
            config = attach(module, {"rebuild": rebuild, "replaced": {**earlier, **own}})
            renew(module, config)
            _follow_ties(module, config)


def _in_names_of(prefix: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in entry.items() if key not in RUN_ONLY}
    return {**kept, "layers": [layer.removeprefix(prefix) for layer in entry["layers"]]}


def attach(model: Any, record: Mapping[str, Any]) -> LowRankConfig:
    """Make a model that was built another way what `from_pretrained` makes of it, so that `save_pretrained` keeps it.

    Args:
        model: with its low-rank layers in it.
        record: what `lowrank.json` says.

    Returns:
        The config that the model has then.
    """
    register()
    config = LowRankConfig(record["rebuild"], record["replaced"], record.get("aliases"))
    _follow_ties(model, config)
    _own_config(model).quantization_config = config
    model.hf_quantizer, model.is_quantized = LowRankQuantizer(config), False
    # Its names are those of its layers, not those of whatever checkpoint the original was read from.
    model._weight_conversions = []
    return config


def _own_config(model: Any) -> Any:
    """The config of a model, of which there is from now on one for this model alone: a dense model may have been built
    from the same object."""
    shared, own = model.config, copy.copy(model.config)
    for part in model.modules():
        if getattr(part, "config", None) is shared:
            part.config = own
    return own


def renew(model: nn.Module, config: LowRankConfig) -> None:
    """Write into a config what a model has become: ranks that a merged adapter changed, tensors that are shared."""
    for entry in config.replaced.values():
        for layer in entry["layers"] if entry["kind"] != "experts" else ():
            module = model.get_submodule(layer)
            if isinstance(module, LowRankLinear):
                entry["rank"] = module.left.in_features
    first: dict[int, str] = {}
    config.aliases = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        stored = first.setdefault(id(tensor), name)
        if stored != name:
            config.aliases[name] = stored
    dtype: Any = model.dtype
    config.rebuild |= {"class": type(model).__name__.removeprefix("FSDP"), "dtype": name_of(dtype)}


def _fitted(model: Any, config: LowRankConfig) -> LowRankConfig:
    """The config in the names of this model, which may lack the head that the saved one had, or have one more."""
    prefix = model.base_model_prefix

    def place_of(layer: str) -> str | None:
        for name in (layer, f"{prefix}.{layer}", layer.removeprefix(f"{prefix}.")):
            if _has(model, name):
                return name
        return None

    replaced: dict[str, Any] = {}
    for weight, entry in config.replaced.items():
        layers = [name for name in map(place_of, entry["layers"]) if name is not None]
        if layers:
            replaced[weight] = {**entry, "layers": layers}
    aliases: dict[str, str] = {}
    for alias, stored in config.aliases.items():
        # Streamed results name layers, others name tensors.
        endings = [f".{side}.weight" for side in SIDES] if config.rebuild["kind"] == "checkpoint" else [""]
        aliases |= {f"{alias}{ending}": f"{stored}{ending}" for ending in endings}
    rebuild = {**config.rebuild, "class": type(model).__name__}
    return LowRankConfig(rebuild, replaced, aliases, config.schema)


def _has(model: nn.Module, name: str) -> bool:
    parent, _, child = name.rpartition(".")
    try:
        return hasattr(model.get_submodule(parent), child)
    except AttributeError:
        return False


def _follow_ties(model: Any, config: LowRankConfig) -> None:
    """Tell transformers which factors are shared, where it knows of dense tensors that were."""
    for part in model.modules():
        for key in ("_tied_weights_keys", "all_tied_weights_keys"):
            declared = getattr(part, key, None)
            if isinstance(declared, Mapping):
                setattr(part, key, dict(_followed(part, declared)))
    tied, there = model.all_tied_weights_keys, set(model.state_dict())
    prefix = f"{model.base_model_prefix}."
    more: dict[str, str] = {}
    for pair in config.aliases.items():
        alias, stored = (next((n for n in (x, prefix + x, x.removeprefix(prefix)) if n in there), None) for x in pair)
        if alias is not None and stored is not None and alias not in tied and tied.get(stored) != alias:
            more[alias] = tied.get(stored, stored)
    tied |= more
    # Saving asks for those that the class declares.
    model._tied_weights_keys = {**(model._tied_weights_keys or {}), **more}


def _followed(part: nn.Module, ties: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for target, source in ties.items():
        factored = [_is_factored(part, name) for name in (target, source)]
        if all(factored):
            for side in SIDES:
                yield tuple(f"{name.removesuffix('.weight')}.{side}.weight" for name in (target, source))  # type: ignore[misc]
        elif not any(factored):
            yield target, source


def _is_factored(part: nn.Module, name: str) -> bool:
    owner, _, key = name.rpartition(".")
    try:
        return key == "weight" and isinstance(part.get_submodule(owner), LowRankLinear | LowRankEmbedding)
    except AttributeError:
        # A pattern.
        return False


def _flag(module: Any) -> None:
    module._is_hf_initialized = True


def _align_(model: nn.Module) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNED:
            with torch.no_grad():
                tensor.data = tensor.data.clone()
