"""The images of a fit: a folder or shards, read when they are needed or, where they are few, once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flexkern.streams.folders import image_folders
from flexkern.streams.image_source import ImageSource, batches
from flexkern.streams.packs import Images
from flexkern.streams.shards import image_shards

__all__ = ["in_memory", "open_images"]

_AT_ONCE = 64  # images that are decoded between two looks at how far it is


def open_images(folder: str | os.PathLike[str], **options: Any) -> tuple[Images, Images]:
    """Training and test images of a folder, or of tar shards: listed, and not decoded.

    Args:
        folder: one that holds the folders "train" and "test" (or "val"), or one folder for each class, or tar
            shards; or a shard.
        options: of the readers: size, test_share, seed, broken, background, workers.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: naming what cannot be read.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"folder: there is nothing at {os.fspath(folder)!r}")
    if root.is_file() or (any(root.glob("*.tar")) and not any(p.is_dir() for p in root.iterdir())):
        return image_shards(root, lazy=True, **options)
    return image_folders(root, lazy=True, **options)


def in_memory(images: Any, most: int, tell: Callable[[int, int], None]) -> Any:
    """The pixels of a source as a tensor, if they take no more than ``most`` bytes; else the source.

    Photographs take longer to decode than to learn, so what there is room for is decoded once and not once an
    epoch; the pixels are the same.

    Args:
        images: a source, or a tensor, which is returned as it is.
        most: bytes.
        tell: told how many images of how many are decoded.
    """
    if not isinstance(images, ImageSource) or images.shape.numel() > most:
        return images
    pixels = torch.empty(images.shape, dtype=torch.uint8)
    rows = torch.arange(len(images)).split(_AT_ONCE)
    for of_batch, part in zip(rows, batches(images, rows), strict=True):
        pixels[of_batch] = part
        tell(int(of_batch[-1]) + 1, len(images))
    return pixels
