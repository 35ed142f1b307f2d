"""One pass over a layer, a third of it silent, against the same written in PyTorch and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from flexkern import ops
from harness import Rotating, Row, rotation

UNITS = 4096
LR, SCALE = 1e-4, 4e5
SPREAD = 1e-6
SILENT = 1 / 3
THRESHOLD = 0.999  # activities are uniform on (0, 1): about one silent synapse in two million converts
CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU rows are measured on a CPU machine")


class Layer(NamedTuple):
    weight: Tensor
    grad: Tensor
    anchor: Tensor
    flexibility: Tensor
    mask: Tensor  # the peer's
    words: Tensor  # packed, ours
    pre: Tensor
    post: Tensor


def make_layer(seed: int, device: str = "cpu", units: int = UNITS) -> Layer:
    generator = torch.Generator(device).manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    def normal(std: float) -> Tensor:
        return torch.randn((units, units), generator=generator, device=device).mul_(std)

    anchor = normal(0.02)
    mask = uniform(units, units) < SILENT
    weight = torch.where(mask, 0.0, anchor + normal(SPREAD))
    f = ops.flexibility_field((units, units), seed=seed, device=device)
    return Layer(
        weight, normal(1.0), anchor, f, mask.float(), ops.pack_mask(mask), uniform(units), uniform(units)
    )


def ours(layer: Layer) -> Tensor:
    w, g, a, f, _, words, pre, post = layer
    return ops.synapse_step_(w, g, a, f, words, pre, post, threshold=THRESHOLD, lr=LR, scale=SCALE).converted


def formula(layer: Layer) -> Tensor:
    """The peer. Its mask is float32, 1: silent, and there is no torch.where: from a bool mask torch 2.13 makes
    code that takes almost three times as long. Silent weights are 0, so they may be subtracted from."""
    w, g, a, f, silent, _, pre, post = layer
    alpha = 1 - torch.tanh(SCALE * (1 - f) / f * (w - a).abs()) ** 2
    converts = silent * (post[:, None] * pre >= THRESHOLD)
    w.sub_((1 - silent) * (LR * alpha * g) - converts * a)
    silent.sub_(converts)
    return converts.sum()


def check_agreement(peer: Callable[[Layer], Tensor], device: str = "cpu") -> None:
    mine, theirs = (make_layer(99, device) for _ in range(2))
    count = int(ours(mine).sum())
    assert count == int(peer(theirs)) > 0
    assert torch.equal(ops.unpack_mask(mine.words, UNITS), theirs.mask != 0)
    # 1 - tanh^2 is off by a few ulp of 1 (4 * 2^-24); then one rounding of w each.
    bound = LR * mine.grad.abs() * 8 * 2**-24 + 2 * mine.anchor.abs() * 2**-24 + 2**-40
    assert bool(((mine.weight - theirs.weight).abs() <= bound).all())


@CPU_ONLY
def test_synapse_step(race: Callable[..., Row]) -> None:
    compiled: Callable[[Layer], Any] = torch.compile(formula)
    check_agreement(compiled)
    layers = [make_layer(i) for i in range(rotation(16 * UNITS**2))]
    row = Row("synapse_step_, 4096 x 4096, a third silent", "torch.compile of the formula", 2.2, at_most=False)
    row.bytes_ours = 20 * UNITS**2
    race(
        row,
        Rotating([lambda x=x: ours(x) for x in layers]),
        Rotating([lambda x=x: compiled(x) for x in layers]),
        rounds=40,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gpu_synapse_step(gpu_race: Callable[..., Row], gpu_backend: None, backend: str) -> None:
    compiled: Callable[[Layer], Any] = torch.compile(formula)
    check_agreement(compiled, "cuda")
    layer, theirs = (make_layer(1, "cuda", 4 * UNITS) for _ in range(2))
    row = Row(
        f"synapse_step_, 16384 x 16384, a third silent ({backend})", "torch.compile of the formula", 1.0, True
    )
    row.bytes_ours = 20 * layer.weight.numel()
    gpu_race(row, lambda: ours(layer), lambda: compiled(theirs))
