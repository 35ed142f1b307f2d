"""Frozen features: of images that are decoded on the way, of images in memory, and from a folder."""

from __future__ import annotations

import io
import shutil
import tempfile
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from flexkern.benchmarks.case import CPU, GPU, Comparison, Peer, Setting, Skip, at_most, case, faster
from flexkern.features import BackboneFeatures, extract_from
from flexkern.streams import ImageSource

__all__ = ["folder", "source"]

WORKERS = 2


class Jpegs(ImageSource):
    """Photographs of noise and slopes, as JPEG files are read: from bytes, which the system has in memory."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__(size, WORKERS)
        from PIL import Image

        rng = np.random.default_rng(0)
        slope = np.linspace(0, 160, size)[:, None, None] + rng.integers(0, 96, (8, size, size, 3))
        self._files = []
        for pixels in slope.astype(np.uint8):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "jpeg", quality=85)
            self._files.append(file.getvalue())
        self._count = count

    def __len__(self) -> int:
        return self._count

    def decode(self, i: int) -> np.ndarray:
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(self._files[i % len(self._files)])))

    def name(self, i: int) -> str:
        return f"photograph {i}"

    def identity(self, i: int) -> str:
        return str(i)


class _Items(Dataset[Tensor]):
    """The same as a map-style data set, an image at a time."""

    def __init__(self, images: ImageSource) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self._images.decode(i).copy()).permute(2, 0, 1)


@torch.no_grad()
def by_hand(module: nn.Module, images: ImageSource, device: str) -> Tensor:
    """The usual loop: DataLoader, the module, a list of what it gives, torch.cat."""
    loader = DataLoader(_Items(images), 64, num_workers=WORKERS, pin_memory=device == GPU)
    return torch.cat([module(x.to(device, non_blocking=True)) for x in loader])


def _agrees(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(theirs().cpu(), ours().cpu(), rtol=1e-4, atol=1e-4)


def _backbone(device: str) -> BackboneFeatures:
    try:
        return BackboneFeatures("small").to(device)
    except ImportError as error:
        raise Skip(str(error)) from error


@case("features/source", devices=(CPU, GPU))
def source(at: Setting) -> Comparison:
    """JPEGs of 224 x 224 pixels through the small transformer, decoded by two workers."""
    images, module = Jpegs(at.size(1024, 80), at.size(224, 32)), _backbone(at.device)
    pixels = images.tensor()
    ours = partial(extract_from, module, images, batch_size=64, device=at.device)
    of_tensor = partial(extract_from, module, pixels, batch_size=64, device=at.device)
    loop = partial(by_hand, module, images, at.device)
    peers = [
        Peer("a loop over a DataLoader, torch.cat", loop, partial(_agrees, ours, loop), at_most(1.1)),
        Peer("flexkern, images in memory already", of_tensor, partial(_agrees, ours, of_tensor)),
    ]
    title = f"features of {len(images)} JPEGs, {images.size} x {images.size}, small ViT, {WORKERS} workers"
    return Comparison(title, ours, peers)


@case("features/folder")
def folder(at: Setting) -> Comparison:
    """Sums of the network, of all images and of the file, one image to compare, and reading all features."""
    images = torch.randint(0, 256, (at.size(2048, 60), 3, 32, 32), dtype=torch.uint8)
    module, path = _backbone(at.device), tempfile.mkdtemp(prefix="flexkern-features-")
    anew = partial(extract_from, module, images)

    def kept() -> Tensor:
        return extract_from(module, images, cache=path).clone()

    kept()
    peers = [Peer("computed anew", anew, partial(_agrees, kept, anew), faster(5))]
    title = (
        f"features of {len(images)} images from a folder, {images.shape[-1]} x {images.shape[-1]}, small ViT"
    )
    return Comparison(title, kept, peers, close=partial(shutil.rmtree, path))
