"""Shards: the tensors of a checkpoint in safetensors files, read one at a time.

The package safetensors maps whole files, which counts against a limit on memory and leaves what was read in it; here
a tensor is read when it is wanted. Every claim of a header is held against the size of its file first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank.artifacts.files import parse_json
from lowrank.artifacts.outside import is_plain, named_in
from lowrank.backends.checkpoint.location import Location
from lowrank.errors import UnsupportedModel, first_line

INDEX_FILE = "model.safetensors.index.json"
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 100_000_000
"""Bytes of a header at most, by the format's own definition."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is: its file, its type as safetensors names it, its shape, and its first and last byte."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def params(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Shards:
    """All tensors of a checkpoint by name. It holds none of them, and it can be sent to another process."""

    place: Location
    tensors: Mapping[str, StoredTensor]

    @property
    def files(self) -> list[str]:
        """The names of the files that hold the tensors."""
        return sorted({stored.file for stored in self.tensors.values()})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.stop - stored.start for stored in self.tensors.values())

    def renamed(self, names: Mapping[str, str]) -> Shards:
        """The same tensors under other names: those that are given, by the names that they have now."""
        return Shards(self.place, {new: self.tensors[old] for old, new in names.items()})

    def raw(self, name: str) -> bytearray:
        """A tensor's bytes as they are in the file."""
        stored = self.tensors[name]
        return self.place.read(stored.file, stored.start, stored.stop)

    def tensor(self, name: str) -> Tensor:
        """A tensor in its own type."""
        stored = self.tensors[name]
        dtype = DTYPES[stored.dtype]
        if not stored.params:
            return torch.empty(stored.shape, dtype=dtype)
        return torch.frombuffer(self.raw(name), dtype=dtype).reshape(stored.shape)


def open_shards(place: Location) -> Shards:
    """The shards of a place: those that its index names, or all the safetensors files in it.

    Raises:
        UnsupportedModel: if a file is missing or damaged, or claims what it does not hold.
    """
    there = place.names()
    names = indexed(place) if INDEX_FILE in there else [n for n in there if n.endswith(".safetensors")]
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        if name not in there:
            raise UnsupportedModel(f"{place.url}/{name} is not there, but {INDEX_FILE} names it; get the whole model")
        for key, stored in read_header(place, name).items():
            if key in tensors:
                raise UnsupportedModel(f"{place.url}: {key} is in {tensors[key].file} and in {name}; keep one of them")
            tensors[key] = stored
    if not tensors:
        raise UnsupportedModel(f"{place.url} holds no tensors in .safetensors files; get the whole model")
    return Shards(place, tensors)


def indexed(place: Location, index: str = INDEX_FILE) -> list[str]:
    """The files that the index of a checkpoint names.

    Raises:
        UnsupportedModel: if it is no index, or names what is no file of its folder.
    """
    try:
        names: set[Any] = set(parse_json(bytes(place.read(index)))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UnsupportedModel(
            f"{place.url}/{index} is not a shard index ({first_line(error)}); copy it again"
        ) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or named_in(Path(), name) is None:
            raise UnsupportedModel(
                f"{place.url}/{index} names {str(name)[:60]!r}, which is no file of its folder; copy it again"
            )
    return sorted(names)


def read_header(place: Location, file: str) -> dict[str, StoredTensor]:
    """Where the tensors of one file are.

    Raises:
        UnsupportedModel: if the file is damaged, or claims what it does not hold.
    """
    size = place.size(file)
    header, origin = _header(place, file, size)
    try:
        return {n: _stored(file, n, entry, origin, size) for n, entry in header.items() if n != "__metadata__"}
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(place, file, error) from None


def read_metadata(place: Location, file: str) -> dict[str, str]:
    """What a file says of itself beside its tensors.

    Raises:
        UnsupportedModel: if the file is damaged.
    """
    metadata = _header(place, file, place.size(file))[0].get("__metadata__")
    return {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}


def _header(place: Location, file: str, size: int) -> tuple[dict[str, Any], int]:
    """The header of a file, and where its data begin."""
    try:
        if size < 8:
            raise ValueError(f"it has {size} bytes")
        length = int.from_bytes(place.read(file, 0, 8), "little")
        if length > min(size - 8, LARGEST_HEADER):
            raise ValueError(f"its header claims {length} bytes, and the file has {size}")
        header = parse_json(bytes(place.read(file, 8, 8 + length)))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
    except ValueError as error:
        raise _damaged(place, file, error) from None
    return header, 8 + length


def _damaged(place: Location, file: str, error: Exception) -> UnsupportedModel:
    return UnsupportedModel(
        f"{place.url}/{file} cannot be read as safetensors ({first_line(error)}); it may be cut short: copy it again"
    )


def _stored(file: str, name: str, entry: Any, origin: int, size: int) -> StoredTensor:
    if not is_plain(name):
        raise ValueError(f"the name {name[:60]!r} cannot be printed")
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if len(shape) > 16:
        raise ValueError(f"{name[:60]!r} claims {len(shape)} dimensions")
    whole = (*shape, start, stop)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in whole):
        raise ValueError(f"the shape or the place of {name[:60]!r} is no row of whole numbers")
    if dtype not in DTYPES:
        raise ValueError(f"{name[:60]!r} is of the type {str(dtype)[:20]}, which is not known here")
    if stop - start != math.prod(shape) * DTYPES[dtype].itemsize or stop > size - origin:
        raise ValueError(f"{name[:60]!r} claims the shape {shape} in {stop - start} bytes, and the file has {size}")
    return StoredTensor(file, dtype, tuple(shape), origin + start, origin + stop)
