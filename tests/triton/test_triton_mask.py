"""Packed masks from Triton, against the reference."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from flexkern import ops, reference
from flexkern.ops.mask import PACK, UNPACK
from flexkern.triton_kernels.mask import WORD_BITS, WORDS

pytestmark = pytest.mark.usefixtures("triton_backend")
ROW = WORDS * WORD_BITS  # columns of one program
SHAPES = [
    (0, 5), (5, 0), (0, 0), (1, 1), (3, 31), (3, 32), (7, 33), (5, 48), (2, 1000),
    (3, ROW - 1), (3, ROW), (2, ROW + 1), (2, 2 * ROW + 48),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack_and_unpack(shape: tuple[int, int], device: torch.device) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.5
    words = ops.pack_mask(mask.to(device))
    # The layout, without the reference: bit j of word k is column 32 k + j, and what is past the end is 0.
    assert words.shape == (shape[0], -(-shape[1] // 32))
    unsigned = words.cpu().long() & 0xFFFFFFFF
    for row in range(min(shape[0], 3)):
        for column in range(0, shape[1], 29):
            assert bool(unsigned[row, column // 32] >> (column % 32) & 1) == bool(mask[row, column])
    if shape[1] % 32 and words.numel():
        assert (unsigned[:, -1] >> (shape[1] % 32) == 0).all()
    if mask.numel():
        assert torch.equal(words.cpu(), reference.pack_mask(mask))
    assert torch.equal(ops.unpack_mask(words, shape[1]).cpu(), mask)


@pytest.mark.parametrize("columns", [32, 64, 50])
def test_a_mask_at_an_odd_address(columns: int, device: torch.device) -> None:
    memory = torch.rand(1 + 3 * columns, generator=torch.Generator().manual_seed(2)) > 0.5
    mask = memory.to(device)[1:].view(3, columns)
    assert torch.equal(ops.pack_mask(mask).cpu(), reference.pack_mask(mask.cpu()))


@pytest.mark.parametrize("fill", [False, True])
def test_all_and_none(fill: bool, device: torch.device) -> None:
    words = ops.pack_mask(torch.full((2, 64), fill, device=device))
    assert (words == (-1 if fill else 0)).all()
    assert (ops.unpack_mask(words, 64) == fill).all()


def test_unpack_ignores_the_bits_past_the_end(device: torch.device) -> None:
    words = torch.full((2, 2), -1, dtype=torch.int32, device=device)
    assert ops.unpack_mask(words, 33).shape == (2, 33)
    assert ops.unpack_mask(words, 33).all()


def test_operands_that_do_not_fit(device: torch.device) -> None:
    with pytest.raises(ValueError, match="mask must be a bool matrix"):
        PACK.on("triton")(torch.zeros(3, dtype=torch.bool, device=device))
    with pytest.raises(ValueError, match=r"words must be int32 \[rows, 2\]"):
        UNPACK.on("triton")(torch.zeros(3, 1, dtype=torch.int32, device=device), 33)
