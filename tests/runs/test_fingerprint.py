"""The fingerprint of a stream: of pixels in memory, and of what sources know of images, undecoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("pydantic")

from flexkern.runs.incremental.data import digest
from flexkern.streams import Experience, ImageSource, Stream


class Files(ImageSource):
    """Four images that nobody may decode."""

    def __init__(self, identities: list[str]) -> None:
        super().__init__(size=8)
        self.identities = identities

    def __len__(self) -> int:
        return len(self.identities)

    def decode(self, i: int) -> np.ndarray:
        raise AssertionError("an image was decoded")

    def name(self, i: int) -> str:
        return str(i)

    def identity(self, i: int) -> str:
        return self.identities[i]


def of(*identities: str) -> str:
    source, labels = Files(list(identities)), torch.zeros(len(identities), dtype=torch.int64)
    return digest(Stream([Experience("a", 0, source, labels, source[:1], labels[:1])], classes=1))


def test_images_on_disk_are_known_without_decoding_them() -> None:
    known = of("a.png 10 1", "b.png 10 1")
    assert of("a.png 10 1", "b.png 10 1") == known
    others = [of("a.png 10 1", "b.png 10 2"), of("b.png 10 1", "a.png 10 1"), of("a.png 10 1b", ".png 10 1")]
    assert len({known, *others}) == 4


def test_images_in_memory_are_known_by_their_pixels() -> None:
    labels = torch.zeros(2, dtype=torch.int64)

    def kept(shade: int) -> str:
        pixels = torch.full((2, 3, 8, 8), shade, dtype=torch.uint8)
        return digest(Stream([Experience("a", 0, pixels, labels, pixels, labels)], classes=1))

    assert kept(1) == kept(1) != kept(2)
