"""Sources: a source is what the tensor of its images would be, decoded by workers or not."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from flexkern.streams import Experience, ImageSource
from flexkern.streams.image_source import batches


class Made(ImageSource):
    """Image i is of colour i; number 13 is broken where ``broken`` says so."""

    def __init__(self, count: int, *, workers: int | None = None, broken: bool = False) -> None:
        super().__init__(4, workers)
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def decode(self, i: int) -> np.ndarray:
        if self.broken and i == 13:
            raise ValueError(f"{self.name(i)}: no image")
        return np.full((4, 4, 3), i, np.uint8)

    def name(self, i: int) -> str:
        return f"made {i}"

    def identity(self, i: int) -> str:
        return str(i)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_tensor(workers: int) -> None:
    source = Made(100, workers=workers)
    rows = torch.randperm(100, generator=torch.Generator().manual_seed(0)).split(16)
    for of_source, of_tensor in zip(batches(source, rows), batches(source.tensor(), rows), strict=True):
        assert torch.equal(of_source, of_tensor)


@pytest.mark.parametrize(
    "index", [slice(3, 50), slice(None, None, -1), [5, 1, 1], torch.tensor([7, -1]), np.arange(0)], ids=str
)
def test_a_part_is_that_of_the_tensor(index: object) -> None:
    source = Made(60)
    every = source.tensor()
    backwards = isinstance(index, slice) and index.step == -1
    expected = every.flip(0) if backwards else every[index]  # type: ignore[index]
    assert torch.equal(source[index].tensor(), expected)
    assert source[index].shape == expected.shape
    again = pickle.loads(pickle.dumps(source[index]))
    assert torch.equal(again.tensor(), expected)


def test_a_part_of_a_part_asks_the_whole() -> None:
    part = Made(60)[10:40][::3][torch.tensor([0, 2])]
    assert [part.name(i) for i in range(2)] == ["made 10", "made 16"]
    assert torch.equal(part[1], torch.full((3, 4, 4), 16, dtype=torch.uint8))


@pytest.mark.parametrize("index", [60, -61, [60], [[1]]])
def test_numbers_that_are_not_there(index: object) -> None:
    with pytest.raises(IndexError, match="60"):
        Made(60)[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_raises_its_own_error(workers: int) -> None:
    source = Made(100, workers=workers, broken=True)
    with pytest.raises(ValueError, match=r"^made 13: no image$"):
        list(batches(source, torch.arange(100).split(10)))


def test_an_experience_takes_sources() -> None:
    labels = torch.zeros(60, dtype=torch.int64)
    experience = Experience("one", 0, Made(60), labels, Made(5), labels[:5])
    assert experience.input_shape == (3, 4, 4)
    with pytest.raises(ValueError, match="one label per input"):
        Experience("one", 0, Made(60), labels, Made(6), labels[:5])
    with pytest.raises(TypeError, match=r"lazy=True"):
        Experience("one", 0, [1, 2], labels, Made(5), labels[:5])
