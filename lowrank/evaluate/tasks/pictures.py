"""Pictures as an image model reads them: resized, cropped and normalised as its preprocessor_config.json says."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.beside import beside
from lowrank.core.distance import Array
from lowrank.errors import TaskError

BILINEAR = 2
"""Pillow's number for it."""


@dataclass(frozen=True)
class Preprocessing:
    """From a file's bytes to channels x height x width."""

    input: str
    """The model's input that takes pictures."""
    channels: int
    height: int
    width: int
    """Of what the model reads."""
    shortest: int | None
    """The length that a picture's shorter edge gets before it is cropped; None squeezes it to the model's size."""
    resample: int
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, spec: str, dense: Backend) -> Preprocessing:
        """For a model that reads pictures and nothing else.

        Raises:
            TaskError: if it does not, or what lies beside it says nothing that can be used.
        """
        signature = signature_of(dense)
        (first, *others) = signature.inputs
        sizes = first.shape(1, 1)
        if others or not first.is_floating or len(sizes) != 4 or sizes[1] not in (1, 3):
            raise TaskError(f"--task {spec}: the model reads {', '.join(signature.names)}, not pictures alone")
        known = beside(dense, "preprocessor_config.json")
        try:
            return cls._from(first.name, sizes, first.dims, known)
        except (TypeError, ValueError, KeyError, OverflowError):
            raise TaskError(
                f"--task {spec}: the model's preprocessor_config.json does not say how a picture is resized and "
                "normalised; repair its size, crop_size, image_mean and image_std"
            ) from None

    @classmethod
    def _from(cls, name: str, sizes: tuple[int, ...], dims: tuple[Any, ...], known: Mapping[str, Any]) -> Preprocessing:
        size = known.get("size", {})
        size = {"shortest_edge": size} if isinstance(size, int) and known.get("do_center_crop") else size
        size = {"height": size, "width": size} if isinstance(size, int) else size
        crop = known.get("crop_size", {}) if known.get("do_center_crop") else {}
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        target = {axis: crop.get(axis, size.get(axis)) for axis in ("height", "width")}
        shortest = size.get("shortest_edge") if known.get("do_resize", True) else None
        # What the graph fixes holds, whatever a file says.
        height, width = (
            dim if isinstance(dim, int) else int(target[axis] or shortest or fallback)
            for dim, axis, fallback in zip(dims[2:], ("height", "width"), sizes[2:], strict=True)
        )
        channels = sizes[1]
        mean, std = (_numbers(known.get(key, 0.5), channels) for key in ("image_mean", "image_std"))
        if not known.get("do_normalize", True):
            mean, std = (0.0,) * channels, (1.0,) * channels
        factor = float(known.get("rescale_factor", 1 / 255)) if known.get("do_rescale", True) else 1.0
        if min(std) <= 0 or not np.isfinite([*mean, *std, factor]).all() or not 1 <= min(height, width) <= 1 << 14:
            raise ValueError("out of range")
        resample = int(known.get("resample", BILINEAR))
        if not 0 <= resample <= 5:
            raise ValueError("no filter of Pillow")
        edge = None if shortest is None else max(int(shortest), height, width)
        return cls(name, channels, height, width, edge, resample, factor, mean, std)

    def __call__(self, content: bytes) -> Array:
        """One picture.

        Raises:
            ValueError: if it cannot be read, whatever is wrong with it.
        """
        from PIL import Image

        try:
            with warnings.catch_warnings():
                # Pillow warns of what may be a bomb, and refuses what is twice that.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                picture = Image.open(io.BytesIO(content)).convert("RGB" if self.channels == 3 else "L")
        except Exception as error:
            raise ValueError(str(error).split("\n")[0][:120] or type(error).__name__) from None
        if self.shortest is None:
            picture = picture.resize((self.width, self.height), self.resample)
        else:
            short = min(picture.size)
            # A thin strip would become very long; what is cropped away need not be made.
            width, height = (min(max(1, self.shortest * side // short), 8 * self.shortest) for side in picture.size)
            picture = picture.resize((width, height), self.resample)
            left, top = (width - self.width) // 2, (height - self.height) // 2
            picture = picture.crop((left, top, left + self.width, top + self.height))
        pixels = np.asarray(picture, np.float32).reshape(self.height, self.width, self.channels) * self.factor
        normal = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1), np.float32)


def _numbers(value: Any, channels: int) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in value) if isinstance(value, list) else (float(value),) * channels
    if len(numbers) != channels:
        raise ValueError("one number a channel is needed")
    return numbers
