"""A small vision transformer for benches, trained from scratch on images in a zip, as a Hugging Face folder.

    python tools/train_vit.py --data cifar10_train10k_jpg.zip --output vit --shifted

The zip holds `.../<class>/<number>.jpg`, all of one size; the last tenth of every class is held out. Needs pillow.
Beside the model lie `calib.npz` (training images), `test.npz` (the held-out ones with their labels) and, with
`--shifted`, `shifted.npz`: the held-out images taken in the dark by a bad camera. The clock ends the training, so other
machines get other weights; `--steps` ends it at a step instead.
"""

from __future__ import annotations

import argparse
import io
import math
import time
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, PATCH = 192, 3, 6, 4
BATCH, RATE, DECAY, WARM_UP = 64, 1e-3, 0.05, 0.05
SHIFT = 4
"""Pixels that a crop may move an image by."""
SPARSE = 0.8
"""For this share of the training the model sees half of the patches, which lets it see twice as many images."""
CALIBRATION = 1024


def read_images(path: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Images x channels x height x width as bytes, their labels and the names of the classes."""
    from PIL import Image  # pyright: ignore[reportMissingImports]

    with zipfile.ZipFile(path) as file:
        names = sorted(name for name in file.namelist() if name.lower().endswith((".jpg", ".jpeg")))
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB")) for name in names])
    folders = [PurePosixPath(name).parent.name for name in names]
    classes = sorted(set(folders))
    labels = torch.tensor([classes.index(folder) for folder in folders])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, classes


def held_out(labels: Tensor) -> Tensor:
    """True for the last tenth of every class."""
    aside = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        aside[rows[len(rows) - len(rows) // 10 :]] = True
    return aside


def normalise(pixels: Tensor) -> Tensor:
    """Bytes to -1...1, as the image processor of the published ViTs does."""
    return pixels.float() / 127.5 - 1


def augment(images: Tensor) -> Tensor:
    """Every second image mirrored, and each moved by a few pixels."""
    count, _, height, width = images.shape
    mirrored = torch.where(torch.rand(count, 1, 1, 1) < 0.5, images.flip(-1), images)
    padded = nn.functional.pad(mirrored, (SHIFT,) * 4)
    top, left = torch.randint(2 * SHIFT + 1, (2, count, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def worsen(images: Tensor) -> Tensor:
    """Normalised images, blurred, at 40 % of their light, with noise."""
    blurred = nn.functional.avg_pool2d(nn.functional.pad(images, (1,) * 4, mode="replicate"), 3, stride=1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return ((blurred + 1) * 0.4 - 1 + 0.1 * noise).clamp(-1, 1)


def build(size: int, classes: list[str]) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=size,
        patch_size=PATCH,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    return ViTForImageClassification(config)


def drop_patches(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    """The class token and a random half of the patches, which know their places already."""
    count, tokens, width = output.shape
    kept = torch.rand(count, tokens - 1).argsort(1)[:, : (tokens - 1) // 2] + 1
    return torch.cat([output[:, :1], output.gather(1, kept[:, :, None].expand(-1, -1, width))], 1)


def fit(model: nn.Module, loss: Callable[[float], Tensor], rate: float, minutes: float, steps: int | None) -> int:
    """Train with AdamW: a short warm-up, then down a cosine.

    Args:
        model: left in evaluation mode.
        loss: of a new batch, given the share of the training that is done.
        rate: the highest learning rate.
        minutes: how long, unless `steps` are given.
        steps: how many steps.

    Returns:
        The steps made.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
    start, made = time.monotonic(), 0

    def done() -> float:
        return made / steps if steps else (time.monotonic() - start) / (60 * minutes)

    model.train()
    while (share := done()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, share / WARM_UP) * (1 + math.cos(math.pi * share)) / 2
        optimizer.zero_grad()
        value = loss(share)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if made % 100 == 0:
            print(f"step {made}, {share:.0%}, loss {value.item():.3f}", flush=True)
        made += 1
    model.eval()
    return made


def train(model: Any, pixels: Tensor, labels: Tensor, minutes: float, steps: int | None) -> int:
    """Returns how many steps it took."""
    order = torch.randperm(len(pixels))
    hook, at = model.vit.embeddings.register_forward_hook(drop_patches), 0

    def loss(share: float) -> Tensor:
        nonlocal order, at
        if share > SPARSE:
            hook.remove()
        if at + BATCH > len(order):
            order, at = torch.randperm(len(pixels)), 0
        rows, at = order[at : at + BATCH], at + BATCH
        return model(pixel_values=augment(normalise(pixels[rows])), labels=labels[rows]).loss

    made = fit(model, loss, RATE, minutes, steps)
    hook.remove()
    return made


def accuracy(model: Any, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        found = torch.cat([model(pixel_values=batch).logits.argmax(-1) for batch in images.split(100)])
    return float((found == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="zip of images in a folder a class")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--shifted", action="store_true", help="write shifted.npz too")
    parser.add_argument("--minutes", type=float, default=5, help="of training")
    parser.add_argument("--steps", type=int, help="train for so many steps instead")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    pixels, labels, classes = read_images(arguments.data)
    aside = held_out(labels)
    seen, seen_labels, tests = pixels[~aside], labels[~aside], {"test": normalise(pixels[aside])}
    if arguments.shifted:
        tests["shifted"] = worsen(tests["test"])
    calibration = normalise(seen[torch.randperm(len(seen))[:CALIBRATION]])
    model = build(pixels.shape[-1], classes)
    made = train(model, seen, seen_labels, arguments.minutes, arguments.steps)
    model.save_pretrained(arguments.output)
    np.savez(arguments.output / "calib.npz", pixel_values=calibration.numpy())
    print(f"{arguments.output}: {made} steps, {made * BATCH / len(seen):.1f} epochs")
    for name, images in tests.items():
        np.savez(arguments.output / f"{name}.npz", pixel_values=images.numpy(), labels=labels[aside].numpy())
        print(f"accuracy on {len(images)} images of {name}.npz: {accuracy(model, images, labels[aside]):.1%}")


if __name__ == "__main__":
    main()
