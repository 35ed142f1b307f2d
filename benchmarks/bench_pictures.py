"""Pictures off the disk into batches, against the data set and the loader that people write for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flexkern.benchmarks.case import CPU, Comparison, Peer, Point, Setting, Skip, at_most, case, faster, series
from flexkern.benchmarks.timing import quartiles
from flexkern.measure import peak_mb
from flexkern.streams import image_folder
from flexkern.streams.image_source import batches

__all__ = ["Folder", "growth_of_memory", "photographs", "pictures"]

SIZE, BATCH, WORKERS, FILES = 256, 64, 2, 16
LAZY, IN_MEMORY = "flexkern, lazy=True", "all in memory (lazy=False)"


class Folder:
    """A folder of JPEGs: a few files, and names enough for them.

    Args:
        width, height: of the pictures.
        count: how many names.

    Raises:
        Skip: if Pillow is not installed.
    """

    def __init__(self, width: int, height: int, count: int) -> None:
        try:
            from PIL import Image
        except ImportError:
            raise Skip("Pillow is not installed") from None
        self._made = tempfile.TemporaryDirectory(prefix="pictures")
        self.path, self.width, self.height, self.count = Path(self._made.name), width, height, count
        rng = np.random.default_rng(0)
        (self.path / "class").mkdir()
        for i in range(min(FILES, count)):
            coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
            grain = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            soft = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            Image.blend(soft, Image.fromarray(grain), 0.1).save(self.file(i), quality=90)
        for i in range(FILES, count):
            os.link(self.file(i % FILES), self.file(i))

    def file(self, i: int) -> Path:
        return self.path / "class" / f"{i:06d}.jpg"

    def rows(self) -> list[Tensor]:
        return list(torch.arange(self.count).split(BATCH))

    def source(self, size: int, workers: int = WORKERS) -> Any:
        return image_folder(self.path, size=size, lazy=True, workers=workers).images

    def close(self) -> None:
        self._made.cleanup()


class Plain(Dataset[Tensor]):
    """As torchvision's ImageFolder with Resize (bicubic), CenterCrop and PILToTensor."""

    def __init__(self, folder: Folder) -> None:
        self.files = [folder.file(i) for i in range(folder.count)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        from PIL import Image

        with open(self.files[i], "rb") as file:
            image = Image.open(file).convert("RGB")
        width, height = image.size
        short = min(width, height)
        sides = (int(SIZE * width / short), int(SIZE * height / short))
        image = image.resize(sides, Image.Resampling.BICUBIC)
        left, top = (round((side - SIZE) / 2) for side in sides)
        image = image.crop((left, top, left + SIZE, top + SIZE))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _comparison(folder: Folder, peer: Peer, note: str = "") -> Comparison:
    """Ours reads all names of the folder once; the first batch waits for the workers to start."""
    source, rows = folder.source(SIZE), folder.rows()
    title = (
        f"{folder.count} JPEGs of {folder.width} x {folder.height} off the disk into batches of {BATCH}, "
        f"{SIZE} x {SIZE}, {WORKERS} workers"
    )

    def ours() -> None:
        for _ in batches(source, rows):
            pass

    return Comparison(title, ours, [peer], memory=False, note=note, close=folder.close)


def _peer(folder: Folder, goal: Any, most: float) -> Peer:
    loader = DataLoader(Plain(folder), batch_size=BATCH, num_workers=WORKERS)

    def call() -> None:
        for _ in loader:
            pass

    def check() -> None:
        """On average no pixel differs by more than ``most``."""
        few = list(range(min(4, folder.count)))
        plain = torch.stack([Plain(folder)[i] for i in few])
        difference = (folder.source(SIZE).take(few).float() - plain).abs().mean()
        assert float(difference) <= most

    return Peer("Pillow in a Dataset, as ImageFolder, and DataLoader", call, check, goal)


@case("pictures/folder")
def pictures(at: Setting) -> Comparison:
    """Pictures as ImageNet's are on average: the pixels are the peer's."""
    folder = Folder(500, 375, at.size(256, 8))
    return _comparison(
        folder,
        _peer(folder, at_most(1.1), 0.0),
    )


@case("pictures/photographs")
def photographs(at: Setting) -> Comparison:
    """A telephone's: a JPEG this large is decoded at a quarter of its size."""
    folder = Folder(4032, 3024, at.size(16, 2))
    return _comparison(
        folder,
        _peer(folder, faster(1.5), 1.5),
        "Large JPEGs are decoded at a part of their size; pixels differ by less than 1.5 of 255 on average.",
    )


@series(
    "growth/pictures-memory",
    title="Peak memory while all pictures of a folder are read once",
    x="pictures",
    y="MB",
    devices=(CPU,),
    flat=True,
)
def growth_of_memory(at: Setting) -> Iterator[Point]:
    """Pictures of 64 x 64, opened and read in batches in this process, over what there was before."""
    for count in (at.size(1000, 20), at.size(4000, 40), at.size(16_000, 80)):
        folder = Folder(64, 64, count)

        def lazy(folder: Folder = folder) -> None:
            for _ in batches(folder.source(64, workers=0), folder.rows()):
                pass

        def in_memory(folder: Folder = folder) -> None:
            image_folder(folder.path, size=64, workers=0)

        lazy()  # what is done once a process is no part of it
        found = {LAZY: peak_mb(lazy, CPU), IN_MEMORY: peak_mb(in_memory, CPU)}
        folder.close()
        yield Point(count, {line: quartiles([mb]) for line, mb in found.items() if mb is not None})
