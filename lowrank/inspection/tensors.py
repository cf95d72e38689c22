"""Files of tensors: safetensors by their headers, torch files without running anything of theirs."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from lowrank.artifacts.outside import check_zip
from lowrank.backends.not_whole import extracting, part_of_names
from lowrank.backends.reparametrized import products_in
from lowrank.errors import ArtifactError, LowRankError, UnsupportedModel, first_line
from lowrank.inspection.description import Description, quoted, tidy

BITS = {"BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U8": 8, "I8": 8, "BF16": 16, "F4": 4}
FACTORS = (".left.weight", ".right.weight")
TensorInfo = tuple[str, str, tuple[int, ...]]
"""Name, type and shape of a tensor."""


def bits_of(dtype: str) -> int:
    """Of one number of a type that safetensors names."""
    return BITS.get(dtype) or (int(dtype[1:]) if dtype[1:].isdigit() else 0)


def header_of(path: Path) -> tuple[list[TensorInfo], dict[str, str]]:
    """All tensors of a safetensors file, and what else its header says.

    Raises:
        ArtifactError: if it is none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            stored = []
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                stored.append((name, str(part.get_dtype()), tuple(part.get_shape())))
            return stored, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is no whole safetensors file ({first_line(error)}); copy it again") from None


def facts_of(stored: Sequence[TensorInfo]) -> dict[str, Any]:
    """Figures of some tensors, and the layers among them that are factors."""
    params = Counter[str]()
    for _, dtype, shape in stored:
        params[dtype] += prod(shape)
    facts: dict[str, Any] = {
        "tensors": len(stored),
        "params": sum(params.values()),
        "bytes_of_numbers": sum(count * bits_of(dtype) for dtype, count in params.items()) // 8,
        "dtypes": {dtype: count for dtype, count in params.most_common()},
    }
    factored = factored_in({name: shape for name, _, shape in stored})
    if factored:
        facts["factored"] = factored
    products = products_in([name for name, _, _ in stored])
    if products:
        facts["products"] = [{"weight": each.name, "of": each.kind} for each in products]
    adapters = sum(".lora_A" in name for name, _, _ in stored)
    if adapters:
        facts["lora_layers"] = adapters
    facts["contents"] = [{"name": n, "dtype": d, "shape": list(s)} for n, d, s in stored]
    return facts


def factored_in(shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """The layers that are two factors, by the names that this package gives them."""
    layers = []
    for name, shape in shapes.items():
        stem = name.removesuffix(FACTORS[0])
        right = shapes.get(stem + FACTORS[1])
        if stem != name and right is not None:
            layers.append({"layer": stem, "rank": rank_of(shape, right)})
    return layers


def rank_of(left: Sequence[int], right: Sequence[int]) -> int:
    """The rank of two factors, in whichever order and orientation they are stored."""
    if len(left) == 2 == len(right):
        return left[1] if left[1] == right[0] else left[0] if left[0] == right[1] else min(*left, *right)
    return min([*left, *right], default=0)


def look_at_safetensors(path: Path) -> Description:
    """A safetensors file."""
    stored, metadata = header_of(path)
    facts = {**facts_of(stored), **({"metadata": tidy(metadata)} if metadata else {})}
    size = f"{facts['tensors']} tensors, {facts['params']:,} numbers"
    if path.name == "analysis.safetensors" or "analysis" in metadata:
        return Description(
            "analysis-numbers",
            f"spectra and moments of an analysis ({size})",
            facts=facts,
            next=(f"lowrank inspect {quoted(path.parent)}",),
        )
    part = part_of_names(path, {name: shape for name, _, shape in stored})
    if part is not None:
        return Description(part.kind, f"{part.what} ({size})", facts=facts, next=part.steps)
    if "factored" in facts:
        what = f"weights of a compressed model, {len(facts['factored'])} of its layers two factors each ({size})"
        return Description("compressed-weights", what, facts=facts, next=(f"lowrank inspect {quoted(path.parent)}",))
    return Description(
        "safetensors",
        f"weights of a model ({size})",
        facts=facts,
        next=_for_weights(path, (path.parent / "config.json").is_file()),
    )


def _for_weights(path: Path, built: bool) -> tuple[str, ...]:
    hint = (
        ()
        if built
        else ("say with --arch package.module:factory or --config config.json how it is built, for an ONNX file",)
    )
    return (f"lowrank analyze {quoted(path)}", *hint)


def look_at_torch(path: Path) -> Description:
    """A .pt, .pth or .bin file: a state dict, a pickled module or TorchScript; nothing in it is run."""
    names: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            check_zip(path)
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
    except (ValueError, OSError, NotImplementedError, zipfile.BadZipFile) as error:
        return _unreadable(path, "a torch file", first_line(error))
    if any("/code/" in name and name.endswith(".py") for name in names):
        return Description(
            "torchscript",
            "a TorchScript archive, which cannot be rewritten",
            facts={"files": len(names)},
            next=("save the module's state dict, or a torch.export archive (.pt2)",),
        )
    from lowrank.backends.torch.pickled_names import pickled_names
    from lowrank.backends.torch.pickles import read_torch_file
    from lowrank.backends.torch.trainer_file import TrainerFile

    names = pickled_names(path)
    try:
        file = read_torch_file(path, unsafe_pickle=False)
    except UnsupportedModel as error:
        facts = {"why": str(error), **({"classes": tidy(names)} if names else {})}
        steps = (extracting(path),) if path.suffix == ".ckpt" and names else ()
        return Description("pickle", "a torch file that is not read as it is", facts=facts, next=steps)
    assert isinstance(file, TrainerFile)
    stored = [(n, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in file.weights.items()]
    facts = {"weights": file.place, "beside": list(file.beside), "other_weights": list(file.others), **facts_of(stored)}
    facts["bytes_of_numbers"] = sum(t.numel() * t.element_size() for t in file.weights.values())
    size = f"{facts['tensors']} tensors, {facts['params']:,} numbers"
    part = part_of_names(path, {name: shape for name, _, shape in stored})
    if part is not None:
        return Description(part.kind, f"{part.what} ({size})", facts=facts, next=part.steps)
    what = f"a state dict ({size})"
    if file.place:
        what = f"a state dict under {file.place!r} in a checkpoint of {file.maker or 'a trainer'} ({size})"
    steps = (
        *_for_weights(path, False),
        *(f"--weights {name} takes the weights under {name!r}" for name in file.others),
    )
    return Description("state-dict", what, facts=facts, next=steps)


def _unreadable(path: Path, what: str, why: str) -> Description:
    return Description("damaged", f"{what} that cannot be read", facts={"why": why}, next=("copy it again",))


def look_at_program(path: Path) -> Description:
    """A torch.export archive."""
    from lowrank.backends.torch.inputs import of_program
    from lowrank.backends.torch.pickles import read_program

    try:
        program = read_program(path, unsafe_pickle=False)
    except LowRankError as error:
        return _unreadable(path, "a torch.export archive", str(error))
    signature = of_program(program)
    nodes = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    state = program.state_dict
    facts = {
        "params": sum(t.numel() for t in state.values()),
        "inputs": signature
        if isinstance(signature, str)
        else [{"name": i.name, "dtype": i.dtype, "shape": list(i.dims)} for i in signature.inputs],
        "nodes": sum(nodes.values()),
        "operators": dict(nodes.most_common(30)),
    }
    what = f"a program of torch.export ({facts['params']:,} parameters, {facts['nodes']} operators)"
    return Description("program", what, facts=facts, next=(f"lowrank analyze {quoted(path)}",))
