"""Networks and training loops that the tests of the modules share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import flexkern
from flexkern import ops
from flexkern.nn import SilentLinear
from flexkern.optim import MetaplasticSGD, fuse_into_backward

HAS_KERNELS = flexkern.backends()["cpu"].available and all(
    torch._C._dispatch_has_kernel_for_dispatch_key(f"flexkern::{op}", "CPU")
    for op in ("synapse_step_", "linear_step_")
)
SIZES = (13, 17, 5)  # no multiple of any block
BATCH = 12

Make = Callable[[int, int, int], nn.Module]


def plain(fan_in: int, fan_out: int, number: int) -> nn.Module:
    return nn.Linear(fan_in, fan_out)


def silent(**options: Any) -> Make:
    """Makes SilentLinear layers with these options and streams of their own."""
    return lambda fan_in, fan_out, number: SilentLinear(fan_in, fan_out, stream=number, seed=4, **options)


def mlp(make: Make = plain, dtype: torch.dtype = torch.float32, sizes: Sequence[int] = SIZES) -> nn.Sequential:
    """Linear, ReLU, ..., linear. The initial values do not depend on the dtype, but for its rounding."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        layers += [make(fan_in, fan_out, number), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def batches(count: int, size: int = BATCH, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Inputs [size, 13] and labels of 5 classes that can be learned."""
    generator = torch.Generator().manual_seed(100 + seed)
    centres = torch.randn(SIZES[-1], SIZES[0], generator=torch.Generator().manual_seed(7))
    labels = [torch.randint(SIZES[-1], (size,), generator=generator) for _ in range(count)]
    return [(centres[y] + torch.randn(size, SIZES[0], generator=generator), y) for y in labels]


def optimizer_of(model: nn.Module, lr: float = 0.1, *, scale: Any = 20.0, **options: Any) -> MetaplasticSGD:
    return MetaplasticSGD(model.parameters(), lr, scale=scale, **options)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Sequence[tuple[Tensor, Tensor]],
    *,
    items: int = 1,
    window: int = 1,
    after_step: Callable[[], None] | None = None,
) -> None:
    """Steps through the data, in items of equal length; every batch is cut into ``window`` micro-batches."""
    dtype = next(model.parameters()).dtype
    for step, (x, y) in enumerate(data):
        optimizer.zero_grad()
        for part_x, part_y in zip(x.chunk(window), y.chunk(window), strict=True):
            loss = nn.functional.cross_entropy(
                model(part_x.to(dtype)).to(torch.promote_types(dtype, torch.float32)), part_y
            )
            (loss / window).backward()
        optimizer.step()
        if after_step is not None:
            after_step()
        if (step + 1) % (len(data) // items) == 0 and isinstance(optimizer, MetaplasticSGD):
            optimizer.consolidate()


def trained(
    data: Sequence[tuple[Tensor, Tensor]],
    *,
    fused: bool,
    dtype: torch.dtype = torch.float32,
    make: Make = plain,
    window: int = 1,
    items: int = 1,
    **options: Any,
) -> tuple[nn.Sequential, MetaplasticSGD]:
    model = mlp(make, dtype)
    optimizer = optimizer_of(model, **options)
    if fused:
        fuse_into_backward(model, optimizer, window=window)
    train(model, optimizer, data, items=items, window=window)
    return model, optimizer


def exact_weights(model: nn.Module, optimizer: MetaplasticSGD) -> Tensor:
    """All parameters, as exact as the optimizer knows them, in float64, one after the other."""
    return torch.cat(
        [optimizer.state[p].get("master", p).detach().double().flatten() for p in model.parameters()]
    )


def mask_of(layer: SilentLinear) -> Tensor:
    """bool [out, in]: which synapses are silent."""
    return ops.unpack_mask(layer.silent, layer.in_features)


def silent_are_zero(model: nn.Module) -> bool:
    """Whether the silent weights of all SilentLinear layers, of which there must be some, are exactly 0."""
    layers = [m for m in model.modules() if isinstance(m, SilentLinear)]
    assert layers
    assert all(mask_of(layer).any() for layer in layers)
    return all(bool((layer.weight[mask_of(layer)] == 0).all()) for layer in layers)


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
