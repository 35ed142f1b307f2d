"""Packed masks against NumPy's own bit packing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flexkern import ops

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [
    (0, 0), (0, 5), (3, 0), (1, 1), (1, 31), (1, 32), (1, 33), (5, 64), (7, 65), (33, 1023), (3, 4097),
    (2000, 3), (1, 100001), (100, 1000),
]  # fmt: skip


def random_mask(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4


def pack_with_numpy(mask: Tensor) -> np.ndarray:
    rows, columns = mask.shape
    padded = np.zeros((rows, -(-columns // 32) * 32), dtype=bool)
    padded[:, :columns] = mask.numpy()
    return np.packbits(padded, axis=1, bitorder="little").view("<i4").reshape(rows, padded.shape[1] // 32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack_and_unpack(backend: str, shape: tuple[int, int]) -> None:
    mask = random_mask(shape, seed=shape[1])
    before = mask.clone()
    words = ops.pack_mask(mask)
    assert words.dtype is torch.int32
    assert words.shape == (shape[0], -(-shape[1] // 32))
    assert np.array_equal(words.numpy(), pack_with_numpy(mask))
    unpacked = ops.unpack_mask(words, shape[1])
    assert unpacked.dtype is torch.bool
    assert torch.equal(unpacked, mask)
    assert torch.equal(mask, before)


def test_each_bit_has_its_place(backend: str) -> None:
    for column in range(70):
        mask = torch.zeros(2, 70, dtype=torch.bool)
        mask[1, column] = True
        words = ops.pack_mask(mask)
        assert words[0].tolist() == [0, 0, 0]
        value = np.array([1 << column % 32], dtype=np.uint32).view(np.int32)[0]
        assert words[1].tolist() == [int(value) if k == column // 32 else 0 for k in range(3)]


def test_all_true_and_bits_past_the_last_column(backend: str) -> None:
    assert ops.pack_mask(torch.ones(1, 64, dtype=torch.bool)).tolist() == [[-1, -1]]
    assert ops.pack_mask(torch.ones(1, 33, dtype=torch.bool)).tolist() == [[-1, 1]]
    # set bits past the last column are no synapses: unpacking ignores them
    full = torch.full((2, 2), -1, dtype=torch.int32)
    assert torch.equal(ops.unpack_mask(full, 33), torch.ones(2, 33, dtype=torch.bool))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "unaligned"])
def test_layouts(backend: str, layout: str) -> None:
    mask = random_mask((40, 70), seed=3)
    if layout == "transposed":
        view = mask.t().contiguous().t()
    elif layout == "sliced":
        view = random_mask((40, 140), seed=4)[:, ::2].copy_(mask)
    elif layout == "unaligned":
        view = random_mask((1, 40 * 70 + 1))[0, 1:].view(40, 70).copy_(mask)
    else:
        mask = mask[:1].expand(40, 70)
        view = mask
    words = ops.pack_mask(view)
    assert np.array_equal(words.numpy(), pack_with_numpy(mask))
    assert torch.equal(ops.unpack_mask(words.t().contiguous().t(), 70), mask)


BOOLS, WORDS = torch.zeros(3, 3, dtype=torch.bool), torch.zeros(3, 1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.zeros(3, 3), TypeError, r"mask must be a torch.bool tensor, got torch.float32"),
        ([[True]], TypeError, r"mask must be a torch.bool tensor, got list"),
        (BOOLS[0], ValueError, r"mask must have two dimensions, got shape \(3,\)"),
        (BOOLS.to_sparse(), TypeError, r"mask.*sparse"),
    ],
)
def test_pack_refuses(mask: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.pack_mask(mask)


@pytest.mark.parametrize(
    ("words", "columns", "error", "message"),
    [
        (WORDS.float(), 5, TypeError, r"words must be a torch.int32 tensor, got torch.float32"),
        (WORDS.long(), 5, TypeError, r"words must be a torch.int32 tensor, got torch.int64"),
        (None, 5, TypeError, r"words must be a torch.int32 tensor, got NoneType"),
        (WORDS.to_sparse(), 5, TypeError, r"words.*sparse"),
        (WORDS[0], 5, ValueError, r"words must be \[rows, 1\] for columns = 5, got \(1,\)"),
        (WORDS, 33, ValueError, r"words must be \[rows, 2\] for columns = 33, got \(3, 1\)"),
        (WORDS, 0, ValueError, r"words must be \[rows, 0\] for columns = 0"),
        (WORDS[:, :0], -1, ValueError, r"columns = -1"),
        (WORDS, 5.5, TypeError, r"columns"),
    ],
)
def test_unpack_refuses(words: object, columns: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.unpack_mask(words, columns)
