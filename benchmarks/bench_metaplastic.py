"""The flexible update against its peers: the first rows of the CPU and GPU budgets.

Run by ``make bench`` (CPU) and ``make gpu-check``; every case checks that ours and the peer agree first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern import Field, ops
from flexkern.fields import Purpose
from harness import Rotating, Row, rotation

ELEMENTS = 1 << 24  # 16.7 M float32
LR, SCALE = 1e-4, 4e5
SPREAD = 1e-6  # |w - a|: alpha spans (0, 1) at this scale

Buffers = tuple[Tensor, Tensor, Tensor, Tensor]


def formula(w: Tensor, g: Tensor, a: Tensor, f: Tensor) -> None:
    """The update as the paper writes it, in place."""
    k = SCALE * (1 - f) / f * (w - a).abs()
    w.sub_(LR * (1 - torch.tanh(k) ** 2) * g)


def ours(w: Tensor, g: Tensor, a: Tensor, f: Tensor) -> None:
    ops.metaplastic_sgd_(w, g, a, f, lr=LR, scale=SCALE)


def make_buffers(count: int, elements: int = ELEMENTS, device: str = "cpu") -> list[Buffers]:
    """Sets of weight, gradient, anchor and flexibility on fresh random values."""
    generator = torch.Generator(device).manual_seed(count)

    def normal(std: float) -> Tensor:
        return torch.randn(elements, generator=generator, device=device).mul_(std)

    sets = []
    for i in range(count):
        w = normal(0.02)
        a = w + normal(SPREAD)
        sets.append((w, normal(1.0), a, ops.flexibility_field((elements,), seed=i, device=device)))
    return sets


def check_agreement(peer: Callable[..., Any], device: str = "cpu") -> None:
    """Ours and the peer take the same step, up to the cancellation of 1 - tanh^2 in the peer's formula."""
    (w, g, a, f) = make_buffers(1, 100_000, device)[0]
    theirs = w.clone()
    ours(w, g, a, f)
    peer(theirs, g, a, f)
    # 1 - tanh^2 is off by a few ulp of 1 (4 * 2^-24); then one rounding of w each.
    bound = LR * g.abs() * 8 * 2**-24 + 2 * w.abs() * 2**-24
    assert bool(((w - theirs).abs() <= bound).all())


def fused_sgd(weights: list[Tensor], grads: list[Tensor]) -> torch.optim.SGD:
    params = [torch.nn.Parameter(w) for w in weights]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    return torch.optim.SGD(params, lr=LR, fused=True)


def sgd_calls(count: int, device: str = "cpu", elements: int = ELEMENTS) -> list[Callable[[], Any]]:
    generator = torch.Generator(device).manual_seed(0)
    calls: list[Callable[[], Any]] = []
    for _ in range(count):
        w, g = (torch.randn(elements, generator=generator, device=device) for _ in range(2))
        calls.append(fused_sgd([w], [g]).step)
    return calls


@pytest.fixture(scope="module")
def stored() -> list[Buffers]:
    return make_buffers(rotation(16 * ELEMENTS))


@pytest.fixture(scope="module")
def plain_sgd() -> list[Callable[[], Any]]:
    return sgd_calls(rotation(8 * ELEMENTS))


def step_calls(step: Callable[..., Any], sets: list[Buffers]) -> Rotating:
    return Rotating([lambda s=s: step(*s) for s in sets])


CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU rows are measured on a CPU machine")


@CPU_ONLY
def test_step_against_compiled_formula(race: Callable[..., Row], stored: list[Buffers]) -> None:
    compiled = torch.compile(formula)
    check_agreement(compiled)
    row = Row("step, stored f, 16.7 M float32", "torch.compile of the formula", 2.2, at_most=False)
    row.bytes_ours = 20 * ELEMENTS
    race(row, step_calls(ours, stored), step_calls(compiled, stored), rounds=40)


@CPU_ONLY
def test_step_against_eager_formula(race: Callable[..., Row], stored: list[Buffers]) -> None:
    check_agreement(formula)
    row = Row("step, stored f, 16.7 M float32", "the formula in eager PyTorch", 25.0, at_most=False)
    row.bytes_ours = 20 * ELEMENTS
    race(row, step_calls(ours, stored), step_calls(formula, stored), rounds=8)


@CPU_ONLY
def test_step_against_sgd(
    race: Callable[..., Row], stored: list[Buffers], plain_sgd: list[Callable[[], Any]]
) -> None:
    row = Row("step, stored f, 16.7 M float32", "torch.optim.SGD(fused=True)", 1.8, at_most=True)
    row.bytes_ours = 20 * ELEMENTS
    row.note = "20 against 12 bytes a parameter: 1.67 by bytes alone"
    race(row, step_calls(ours, stored), Rotating(plain_sgd), rounds=60)


@CPU_ONLY
def test_gated_step_against_sgd(
    race: Callable[..., Row], stored: list[Buffers], plain_sgd: list[Callable[[], Any]]
) -> None:
    # The flexibility buffers serve as stored alphas: any values in (0, 1) do.
    gated = [lambda s=s: ops.gated_sgd_(s[0], s[1], s[3], lr=LR) for s in stored]
    row = Row("item-gated step, 16.7 M float32", "torch.optim.SGD(fused=True)", 1.4, at_most=True)
    row.bytes_ours = 16 * ELEMENTS
    row.note = "16 against 12 bytes a parameter: 1.33 by bytes alone"
    race(row, Rotating(gated), Rotating(plain_sgd), rounds=60)


GPU_ELEMENTS = 1 << 28  # 256 M parameters
BACKENDS = ("cuda", "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_gpu_step_against_copy(gpu_race: Callable[..., Row], gpu_backend: None, backend: str) -> None:
    check_agreement(formula, "cuda")
    sets = make_buffers(1, GPU_ELEMENTS, "cuda")
    source = torch.randn(5 * GPU_ELEMENTS // 2, device="cuda")
    target = torch.empty_like(source)  # 20 bytes a parameter, read and written, as the step moves
    row = Row(
        f"step, stored, 256 M ({backend})", "device-to-device copy of as many bytes", 1 / 0.92, at_most=True
    )
    row.bytes_ours = 20 * GPU_ELEMENTS
    gpu_race(row, step_calls(ours, sets), lambda: target.copy_(source))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_gpu_procedural_step_against_sgd(gpu_race: Callable[..., Row], gpu_backend: None, backend: str) -> None:
    f, a = Field.uniform(1), Field.normal(1, std=0.02, purpose=Purpose.ANCHOR)
    w = ops.materialize(a, (GPU_ELEMENTS,), device="cuda")
    g = torch.randn(GPU_ELEMENTS, device="cuda")
    row = Row(f"step, procedural f and a, 256 M ({backend})", "torch.optim.SGD(fused=True)", 1.05, at_most=True)
    row.bytes_ours = 12 * GPU_ELEMENTS
    peer = fused_sgd([torch.randn(GPU_ELEMENTS, device="cuda")], [torch.randn(GPU_ELEMENTS, device="cuda")])
    gpu_race(row, lambda: ops.metaplastic_sgd_(w, g, a, f, lr=LR, scale=SCALE), peer.step)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_gpu_small_tensors_against_foreach(
    gpu_race: Callable[..., Row], gpu_backend: None, backend: str
) -> None:
    count, elements = 200, 4096
    sets = make_buffers(count, elements, "cuda")
    weights, grads, anchors, fs = (list(column) for column in zip(*sets, strict=True))

    def foreach() -> None:
        d = torch._foreach_sub(weights, anchors)
        torch._foreach_abs_(d)
        k = torch._foreach_neg(fs)
        torch._foreach_add_(k, 1.0)
        torch._foreach_mul_(k, SCALE)
        torch._foreach_div_(k, fs)
        torch._foreach_mul_(k, d)
        torch._foreach_tanh_(k)
        torch._foreach_mul_(k, k)
        torch._foreach_mul_(k, -1.0)
        torch._foreach_add_(k, 1.0)
        torch._foreach_mul_(k, grads)
        torch._foreach_add_(weights, k, alpha=-LR)

    row = Row(f"step, 200 tensors of 4096 ({backend})", "the formula with torch._foreach_*", 3.0, at_most=False)
    row.bytes_ours = 20 * count * elements
    gpu_race(row, lambda: ops.metaplastic_sgd_(weights, grads, anchors, fs, lr=LR, scale=SCALE), foreach)
