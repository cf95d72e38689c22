"""How a torch model is fed, found without running code of the model's file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowrank.backends.inputs import MASK, NOISE, NOT_RUN, TRIED, Dim, Feed, Input, Signature, shown_by
from lowrank.backends.outputs import Output, output_named
from lowrank.backends.torch.results import Result, named_tensors
from lowrank.core.match import in_block
from lowrank.errors import first_line


def call(signature: Signature, module: nn.Module, values: Feed | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of one forward pass by name, on arrays or tensors; all that there are where the signature names none.

    Raises:
        TypeError: if the module does not give one of them.
    """
    given = _run(signature, module, values).tensors
    lacking = [name for name in signature.output_names if name not in given]
    if lacking or not given:
        raise TypeError(f"the model gives {', '.join(given) or 'no tensor'}, not {lacking[0] if lacking else 'one'}")
    return {name: given[name] for name in signature.output_names} if signature.outputs else given


def _run(signature: Signature, module: nn.Module, values: Feed | Mapping[str, Tensor]) -> Result:
    """Everything that one forward pass gives."""
    tensors = as_tensors(signature, values)
    args = [tensors[name] for name in signature.names[: signature.positional]]
    kwargs = {name: tensors[name] for name in signature.names[signature.positional :]}
    with _mixing(signature, tensors):
        return named_tensors(module(*args, **kwargs, **dict(signature.fixed_kwargs)))


def with_outputs(
    signature: Signature | str, module: nn.Module, feed: Feed | None = None, decoded: bool = False
) -> Signature | str:
    """The signature with all outputs that a run shows; the reason where the module does not run.

    Args:
        signature: how the module is fed.
        module: in evaluation mode.
        feed: what it is run on; random inputs if not given.
        decoded: whether it has an encoder and a decoder.
    """
    if isinstance(signature, str):
        return signature
    feed = feed or signature.example(2, min(TRIED, signature.max_sequence))
    try:
        with torch.no_grad():
            found = _run(signature, module, feed)
    except Exception as error:
        return f"{NOT_RUN}{first_line(error)}"
    if not found.tensors:
        return "it gives no tensor"
    named = tuple(output_named(name, decoded) for name in found.tensors)
    signature = replace(signature, outputs=named, left_out=tuple(found.left_out))
    return shown_by(signature, feed, _arrays(found), partial(_run_arrays, signature, module), _facts(module))


def _arrays(found: Result) -> dict[str, NDArray[Any]]:
    """What a run gave as arrays; whole numbers stay what they are."""
    tensors = {name: value.detach().cpu() for name, value in found.tensors.items()}
    return {name: (value.float() if value.is_floating_point() else value).numpy() for name, value in tensors.items()}


def _run_arrays(signature: Signature, module: nn.Module, feed: Feed) -> dict[str, NDArray[Any]]:
    with torch.no_grad():
        return _arrays(_run(signature, module, feed))


def _facts(module: nn.Module) -> dict[str, Any]:
    """What the config of a model of `transformers` says of its outputs, and its class."""
    config = getattr(module, "config", None)
    return {"architectures": [type(module).__name__], "problem_type": getattr(config, "problem_type", None)}


def _mixing(signature: Signature, tensors: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
    """Products of numbers of two types inside the block, where the signature asks for it."""
    if signature.autocast is None:
        return nullcontext()
    device = next(iter(tensors.values())).device.type
    return torch.autocast(device, getattr(torch, signature.autocast))


def as_tensors(signature: Signature, values: Feed | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs as tensors of the signature's types; tensors are left as they are."""
    tensors: dict[str, Tensor] = {}
    for spec in signature.inputs:
        value = values[spec.name]
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(value).to(getattr(torch, spec.dtype))
        tensors[spec.name] = tensor
    return tensors


def compared_output(signature: Signature, output: Output, value: Tensor, feed: Feed) -> tuple[Tensor, Tensor | None]:
    """What is compared of an output, and which of its positions count; None if all do.

    Scores of positions are out of the question where there is padding: the numbers there are lower than any score.
    Values of positions get an axis of one number each.
    """
    counted = signature.counted(feed, output)
    mask = None if counted is None else torch.from_numpy(counted).to(value.device)
    if mask is not None and output.over_positions and value.shape == mask.shape:
        return (value.masked_fill(~mask, -1e9), None) if output.kind == "logits" else (value[..., None], mask)
    return value, mask


def mask_of(feed: Feed) -> Tensor | None:
    """Which tokens of a feed count; None if all do."""
    mask = feed.get(MASK)
    return None if mask is None or np.all(mask != 0) else torch.from_numpy(mask) != 0


def token_rows(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens x width, without those that a mask of the same shape leaves out."""
    if mask is not None and tensor.shape[:-1] == mask.shape:
        return tensor[mask]
    return tensor.reshape(-1, tensor.shape[-1])


def in_float32(signature: Signature) -> Signature:
    """The same inputs for a module whose floating numbers are all float32."""
    return with_floats(signature, "float32")


def with_floats(signature: Signature, dtype: str) -> Signature:
    """The same inputs for a module whose floating numbers are all of one type."""
    inputs = (replace(i, dtype=dtype) if i.is_floating else i for i in signature.inputs)
    return replace(signature, inputs=tuple(inputs), autocast=None)


def name_of(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def of_transformers(model: Any) -> Signature | str:
    """The signature of a `transformers` model from its config, without its outputs; the reason why there is none."""
    config = model.config
    accepted = set(inspect.signature(model.forward).parameters)
    main = model.main_input_name
    readers = {"input_ids": _tokens, "pixel_values": _images, "input_features": _spectrogram, "input_values": _waves}
    if main not in readers:
        return f"its main input is {main!r}; what that holds is not known: give its inputs as .npz"
    # A model of text and images is fed with both.
    two = main == "input_ids" and "pixel_values" in accepted and hasattr(_vision(config), "image_size")
    specs: list[Input] = []
    for name in (main, "pixel_values") if two else (main,):
        inputs = readers[name](config, accepted)
        if isinstance(inputs, str):
            return inputs
        specs += inputs
    if type(model).__name__.endswith("ForMultipleChoice"):
        specs = [replace(spec, dims=("batch", "choices", "sequence")) for spec in specs]
    usable = _positions(config)
    if _judges_what_it_reads(model):
        # It shifts what it reads into its decoder, and a class is taken of where a text ends.
        specs[0] = replace(specs[0], last=_end_token(config))
    elif config.is_encoder_decoder and "decoder_input_ids" in accepted:
        open_already = any("sequence" in i.dims for i in specs)
        dims: tuple[Dim, ...] = ("batch", "target" if open_already else "sequence")
        specs.append(Input("decoder_input_ids", "int64", dims, config.get_text_config().vocab_size))
        # The target is drawn one longer than the source.
        usable -= 1
    fixed: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    if getattr(config, "return_dict", True) is False:
        # A plain tuple has no names.
        fixed["return_dict"] = True
    return Signature(tuple(specs), (), 0, usable, tuple(fixed.items()))


def _judges_what_it_reads(model: Any) -> bool:
    """Whether a model with a decoder has a head that generates nothing: for classes of texts, or answers in them."""
    seq2seq = model.config.is_encoder_decoder and model.main_input_name == "input_ids"
    return seq2seq and not model.can_generate() and model.base_model is not model


def _end_token(config: Any) -> int | None:
    """The token that ends a text, where a config names one."""
    token, vocabulary = config.eos_token_id, config.get_text_config().vocab_size
    return token if isinstance(token, int) and 0 <= token < vocabulary else None


UNLIMITED = 512
"""Tokens of the longest sequence where a config names no limit."""


def _positions(config: Any) -> int:
    """The longest sequence that a config allows, in tokens; XLNet's says -1 for any."""
    text = config.get_text_config()
    sizes = (getattr(text, name, None) for name in ("max_target_positions", "max_position_embeddings"))
    positions = next((size for size in sizes if size and size > 0), UNLIMITED)
    # RoBERTa and models like it count positions from the padding index on.
    return positions - (2 if getattr(config, "pad_token_id", None) == 1 else 0)


def _tokens(config: Any, accepted: set[str]) -> list[Input] | str:
    dims: tuple[Dim, ...] = ("batch", "sequence")
    specs = [Input("input_ids", "int64", dims, config.get_text_config().vocab_size)]
    if MASK in accepted:
        specs.append(Input(MASK, "int64", dims, 2))
    if "token_type_ids" in accepted and getattr(config, "type_vocab_size", 0) > 1:
        specs.append(Input("token_type_ids", "int64", dims, config.type_vocab_size))
    return specs


USUAL_IMAGE = 224
"""What image models are trained on; those of convolutions alone take any size, and their configs name none."""


def _vision(config: Any) -> Any:
    """The part of a config that says how images are read: its own part for that, or that of an encoder, or itself."""
    parts = (getattr(config, name, None) for name in ("vision_config", "encoder"))
    return next((part for part in parts if hasattr(part, "image_size")), config)


def _images(config: Any, accepted: set[str]) -> list[Input] | str:
    vision = _vision(config)
    size = getattr(vision, "image_size", None) or USUAL_IMAGE
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    pixels = Input("pixel_values", "float32", ("batch", getattr(vision, "num_channels", 3), height, width))
    if NOISE not in accepted or not isinstance(getattr(vision, "patch_size", None), int):
        return [pixels]
    # By which a masked autoencoder chooses what it does not see: it would draw other numbers at every run.
    return [pixels, Input(NOISE, "float32", ("batch", (height // vision.patch_size) * (width // vision.patch_size)))]


def _spectrogram(config: Any, accepted: set[str]) -> list[Input] | str:
    bins, positions = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    if bins is None or positions is None:
        return "its config does not say how long a spectrogram is; give its inputs as .npz"
    # Every second frame is a position: the encoder's convolutions take steps of 1 and 2.
    return [Input("input_features", "float32", ("batch", bins, 2 * positions))]


def _waves(config: Any, accepted: set[str]) -> list[Input] | str:
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if not kernels or not strides:
        return "its config does not say how samples become steps; give its inputs as .npz"
    span, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        span, step = span + (kernel - 1) * step, step * stride
    return [Input("input_values", "float32", ("batch", "sequence"), 1, step, span - step)]


def of_running(model: Any) -> Signature | str:
    """The signature of a `transformers` model with its outputs, for which it is run once."""
    return with_outputs(of_transformers(model), model, decoded=model.config.is_encoder_decoder)


def of_module(module: nn.Module, autocast: str | None = None) -> Signature | str:
    """A signature for a module that says nothing of its inputs, from its first layer, checked by running it.

    Args:
        module: in evaluation mode.
        autocast: as in `Signature`.
    """
    required = [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) != 1:
        return (
            f"its forward takes {len(required)} required inputs, whose shapes are not known; give them as --calib .npz"
        )
    for candidate in (replace(each, autocast=autocast) for each in _candidates(module, required[0])):
        try:
            with torch.no_grad():
                for sequence in (5, 8):
                    call(candidate, module, candidate.example(2, sequence))
        except Exception:
            # A guess that does not run is not the answer.
            continue
        if candidate.has_sequence:
            candidate = replace(candidate, max_sequence=_longest(module, candidate))
        return with_outputs(candidate, module)
    return "the shape of its input cannot be guessed from its first layer"


def _longest(module: nn.Module, signature: Signature) -> int:
    """A sequence length that the module still takes: learned positions end somewhere."""
    longest = 8
    for sequence in (16, 33, 64, 128, 256, 512):
        try:
            with torch.no_grad():
                call(signature, module, signature.example(1, sequence))
        except Exception:
            break
        longest = sequence
    return longest


def _candidates(module: nn.Module, name: str) -> list[Signature]:
    first = next((m for m in module.modules() if next(m.parameters(recurse=False), None) is not None), None)
    if isinstance(first, nn.Embedding):
        tokens = Input(name, "int64", ("batch", "sequence"), first.num_embeddings)
        return [Signature((tokens,), (), 1)]
    linear = next((m for m in module.modules() if isinstance(m, nn.Linear)), None)
    if linear is None:
        return []
    dtype, width = name_of(linear.weight.dtype), linear.in_features
    shapes: list[tuple[Dim, ...]] = [("batch", width), ("batch", "sequence", width)]
    # What is built of numbered blocks reads sequences; a plain stack of layers reads rows.
    if any(in_block(path) for path, _ in module.named_parameters()):
        shapes.reverse()
    return [Signature((Input(name, dtype, dims),), (), 1) for dims in shapes]


def of_program(program: torch.export.ExportedProgram) -> Signature | str:
    """The signature of an exported program; dimensions that it left open stay open."""
    wanted = set(program.graph_signature.user_inputs)
    names: list[Dim] = ["batch", "sequence"]
    open_dims: dict[str, Dim] = {}
    inputs: list[Input] = []
    samples = {}
    if program.example_inputs:
        leaves = tree_leaves(program.example_inputs)
        samples = dict(zip(program.graph_signature.user_inputs, leaves, strict=False))
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in wanted:
            continue
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return f"its input {node.name} is no tensor"
        dims: list[Dim] = []
        for size in value.shape:
            if isinstance(size, int):
                dims.append(size)
                continue
            key = str(size)
            if key not in open_dims:
                if len(open_dims) == len(names):
                    return "more than two of its dimensions vary"
                open_dims[key] = names[len(open_dims)]
            dims.append(open_dims[key])
        sample = samples.get(node.name)
        high = int(sample.max()) + 1 if isinstance(sample, Tensor) and not sample.is_floating_point() else 1
        inputs.append(Input(str(node.name), name_of(value.dtype), tuple(dims), high))
    positional = program.call_spec.in_spec.child(0).num_children if program.call_spec.in_spec else len(inputs)
    named = [*inputs[:positional]]
    # Keyword inputs keep the name that the caller used, which the placeholder carries too.
    return Signature(tuple(named + inputs[positional:]), (), positional)
