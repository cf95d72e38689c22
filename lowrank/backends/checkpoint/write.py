"""The compressed checkpoint, file by file: a shard for each factored weight, and one for the rest of each old shard."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lowrank.artifacts.files import RECORD_FILE, atomic, write_json
from lowrank.backends.checkpoint.backend import CheckpointBackend
from lowrank.backends.checkpoint.location import Location
from lowrank.backends.checkpoint.shards import DTYPES, INDEX_FILE, NAMES, StoredTensor, read_header, read_metadata
from lowrank.backends.config_block import write_block
from lowrank.backends.torch.layers import record_of
from lowrank.backends.torch.tensors import factor_tensors
from lowrank.core.match import stem
from lowrank.core.rounding.cast import cast_energy, evened
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.pivoted import Pivoted
from lowrank.errors import ArtifactError

Bytes = bytearray | memoryview
TensorBytes = tuple[str, tuple[int, ...], Iterable[Bytes]]
"""A tensor's type as safetensors names it, its shape, and its bytes."""
CHUNK = 16 * 2**20
"""Bytes that are copied at once."""
FACTS = "lowrank"
"""What a shard's metadata call the facts of its weight."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What is known of a weight whose factors are on disk."""

    name: str
    record: Mapping[str, Any]
    """How its layer is built again; see `record_of`."""
    cast: float
    """The squared Frobenius norm of what its dtype changed."""


def shard_name(index: int, count: int) -> str:
    """As Hugging Face names them, from 1 on.

    Example:
        >>> shard_name(0, 12)
        'model-00001-of-00012.safetensors'
    """
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def write_factors(backend: CheckpointBackend, name: str, replacement: Replacement, path: Path) -> Written:
    """Write the factors of a weight in its own dtype, whole or not at all, and read them again.

    Raises:
        NonFiniteWeight: if they do not fit the dtype's range.
        ArtifactError: if they cannot be written.
    """
    weight, dtype = backend.by_name[name], backend.dtype(name)
    factors = replacement.factors
    assert isinstance(factors, Factors | Pivoted)
    if dtype.itemsize == 1 and isinstance(factors, Factors):
        factors = evened(factors)
    tensors = factor_tensors(name, factors, dtype, weight.is_table)
    wide = {key: tensor.float().numpy() if key != "order" else tensor.numpy() for key, tensor in tensors.items()}
    pair = (wide["left.weight"], wide["right.weight"])
    left, right = (pair[1].T, pair[0].T) if weight.is_table else pair
    stored: Factors | Pivoted = replace(factors, left=left, right=right)
    bias = f"{stem(backend.stored[name])}.bias" in backend.shards.tensors
    written = Written(name=name, record=record_of(weight, replacement, bias), cast=cast_energy(factors, stored))
    base = stem(backend.stored[name])
    parts = {
        f"{base}.{key}": (NAMES[tensor.dtype], tuple(tensor.shape), [_bytes_of(tensor)])
        for key, tensor in tensors.items()
    }
    _write(path, parts, {"format": "pt", FACTS: json.dumps(asdict(written))})
    return written


def written(path: Path) -> Written | None:
    """What `write_factors` wrote to a file; None if there is no such file, or not a whole one."""
    try:
        return Written(**json.loads(read_metadata(Location(str(path.parent)), path.name)[FACTS]))
    except Exception:
        # It is made again, whatever it is.
        return None


def copy_tensors(backend: CheckpointBackend, names: Sequence[str], path: Path) -> None:
    """Write some of the checkpoint's tensors as they are, byte for byte, whole or not at all.

    Raises:
        ArtifactError: if they cannot be written.
    """

    def chunks(stored: StoredTensor) -> Iterator[Bytes]:
        for start in range(stored.start, stored.stop, CHUNK):
            yield backend.shards.place.read(stored.file, start, min(start + CHUNK, stored.stop))

    sources = {name: backend.shards.tensors[name] for name in names}
    _write(path, {name: (s.dtype, s.shape, chunks(s)) for name, s in sources.items()}, {"format": "pt"})


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def _write(path: Path, parts: Mapping[str, TensorBytes], metadata: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all, and always of the same bytes: the package orders metadata at random."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    place = 0
    for name, (dtype, shape, _) in parts.items():
        size = math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as temporary, temporary.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, _, chunks in parts.values():
            for chunk in chunks:
                stream.write(chunk)


def is_copied(backend: CheckpointBackend, names: Sequence[str], path: Path) -> bool:
    """Whether `copy_tensors` wrote a file already. It is whole, as it has its name only then."""
    if not path.is_file():
        return False
    copies = read_header(Location(str(path.parent)), path.name)
    wanted = {name: backend.shards.tensors[name] for name in names}
    return {n: (s.dtype, s.shape) for n, s in copies.items()} == {n: (s.dtype, s.shape) for n, s in wanted.items()}


def finish(backend: CheckpointBackend, folder: Path, written: Sequence[Written]) -> int:
    """Write the index, the record of what was replaced, and the model's other files; the bytes of all tensors.

    Raises:
        ArtifactError: if a tensor is missing from the shards in the folder.
    """
    where: dict[str, str] = {}
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        for name, stored in read_header(Location(str(folder)), path.name).items():
            where[name] = path.name
            total += stored.stop - stored.start
    factored = {backend.stored[each.name] for each in written}
    lost = sorted(set(backend.shards.tensors) - factored - set(where))
    if lost:
        raise ArtifactError(f"{folder} lacks {lost[0]} and {len(lost) - 1} more; compress again without --resume")
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    with atomic(folder / INDEX_FILE) as temporary:
        temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for extra in backend.extras:
        if extra.is_dir():
            shutil.copytree(extra, folder / extra.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        else:
            shutil.copyfile(extra, folder / extra.name)
    replaced = {each.name: dict(each.record) for each in written}
    tied = {
        alias: first for alias, first in backend.aliases.items() if any(first in r["layers"] for r in replaced.values())
    }
    record = {"rebuild": dict(backend.rebuild), "replaced": replaced, "aliases": tied}
    write_block(folder, record)
    write_json(folder / RECORD_FILE, "model", record)
    return total
