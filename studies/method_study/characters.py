"""Characters in Omniglot's layout: a folder for each alphabet, in it a folder for each character's drawings."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flexkern.streams import Images
from flexkern.streams.augment import as_bytes, as_float, resize

__all__ = ["characters", "small_enough"]


def small_enough(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 images whose shorter side is ``size`` pixels at most: thin strokes survive no later resampling."""
    if min(images.shape[-2:]) <= size:
        return images
    return as_bytes(resize(as_float(images), size))


@functools.lru_cache(maxsize=1)
def characters(path: str, size: int) -> Images:
    """All drawings below a folder; every folder that has PNG files itself is a class.

    Omniglot's ``images_background`` and ``images_evaluation`` are such folders, or the folder of both, and so
    is what ``scripts/draw_characters.py`` writes.

    Args:
        path: of the folder.
        size: the images' sides become this many pixels, if they are larger.

    Raises:
        ValueError: if there are no PNG files.
    """
    root = Path(path)
    folders = sorted({file.parent for file in root.rglob("*.png")})
    if not folders:
        raise ValueError(f"path: {path!r} has no folders of PNG files, as Omniglot has for each character")
    parts, labels = [], []
    for label, folder in enumerate(folders):
        files = sorted(folder.glob("*.png"))
        drawn = np.stack([np.asarray(Image.open(file).convert("L")) for file in files])
        tensor = torch.from_numpy(drawn)[:, None].expand(-1, 3, -1, -1)
        parts.append(small_enough(tensor, size))
        labels += [label] * len(files)
    names = [folder.relative_to(root).as_posix() for folder in folders]
    return Images(torch.cat(parts), torch.tensor(labels), names)
