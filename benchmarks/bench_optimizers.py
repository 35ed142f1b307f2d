"""AdamW, and any optimizer's step with its displacement scaled, against torch's fused AdamW."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from flexkern import ops
from flexkern.benchmarks.bench_metaplastic import BACKENDS, GRADIENT, SCALE, SPREAD, count
from flexkern.benchmarks.case import CPU, GPU, Comparison, Peer, Setting, Work, at_most, case
from flexkern.optim import Metaplastic, MetaplasticAdamW

LR = 1e-4
STEPS = 3


def weight(elements: int, device: str, gradient: float = GRADIENT) -> Parameter:
    """A matrix with a gradient, the same one at each call."""
    generator = torch.Generator(device).manual_seed(elements)
    p = Parameter(torch.randn(elements // 64, 64, generator=generator, device=device).mul_(0.02))
    p.grad = torch.randn(p.shape, generator=generator, device=device).mul_(gradient)
    return p


def in_second_item(optimizer: MetaplasticAdamW | Metaplastic) -> Optimizer:
    """Steps of a later item: the first one's are free. Weights have come so far that alpha spans (0, 1)."""
    optimizer.step()
    (p,) = optimizer.param_groups[0]["params"]
    with torch.no_grad():
        p.add_(torch.randn_like(p), alpha=SPREAD)
    optimizer.consolidate()
    for _ in range(STEPS):
        optimizer.step()
    return optimizer


def adamw(elements: int, device: str, gate: str) -> MetaplasticAdamW:
    p = weight(elements, device)
    f = ops.flexibility_field(p.shape, seed=1, device=device)
    return MetaplasticAdamW([p], LR, scale=SCALE, flexibility=f, gate=gate)


def agrees(make: str, device: str) -> None:
    """With f = 1 ours is torch's AdamW."""
    mine, theirs = weight(1 << 16, device, 1.0), weight(1 << 16, device, 1.0)
    if make == "adamw":
        optimizer: Optimizer = MetaplasticAdamW([mine], LR, scale=SCALE, flexibility=1.0)
    else:
        optimizer = Metaplastic(AdamW([mine], LR, fused=True), scale=SCALE, flexibility=1.0)
    peer = AdamW([theirs], LR, fused=True)
    for _ in range(STEPS):
        optimizer.step()
        peer.step()
    # A step of AdamW is lr long at most here; each rounds it some 16 times, and w twice.
    bound = STEPS * 2 * 2**-24 * (16 * LR + 2 * theirs.abs())
    assert bool(((mine - theirs).abs() <= bound).all())


def build(make: str, gate: str, bytes_moved: int, most: float, at: Setting) -> Comparison:
    elements = at.size(1 << 28 if at.device == GPU else 1 << 24, 1 << 16)
    peer = AdamW([weight(elements, at.device)], LR, fused=True)
    if make == "adamw":
        ours = in_second_item(adamw(elements, at.device, gate))
        title = f'MetaplasticAdamW, stored f, gate="{gate}"'
    else:
        f = ops.flexibility_field((elements // 64, 64), seed=1, device=at.device)
        inner = AdamW([weight(elements, at.device)], LR, fused=True)
        ours = in_second_item(Metaplastic(inner, scale=SCALE, flexibility=f, gate=gate))
        title = f'Metaplastic(AdamW(fused=True)), stored f, gate="{gate}"'
    peers = [Peer("torch.optim.AdamW(fused=True)", peer.step, partial(agrees, make, at.device), at_most(most))]
    return Comparison(
        f"{title}, {count(elements)} float32{at.suffix()}", ours.step, peers, Work(bytes_moved * elements)
    )


# Bytes say 36 / 28 = 1.29 and 32 / 28 = 1.14; for the displacement, which copies (8) and scales (16 with a
# stored alpha, 20 with a and f), 52 / 28 = 1.86 and 56 / 28 = 2.
for _make, _gate, _bytes, _most in (
    ("adamw", "step", 36, 1.3),
    ("adamw", "item", 32, 1.3),
    ("displacement", "item", 52, 1.8),
    ("displacement", "step", 56, 1.8),
):
    case(f"optimizers/{_make}-{_gate}", devices=(CPU, GPU), backends=BACKENDS)(
        partial(build, _make, _gate, _bytes, _most)
    )
