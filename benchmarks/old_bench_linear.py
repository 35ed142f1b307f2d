"""The step inside the gradient's product, against the library's product followed by the same fused update."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexkern import ops
from harness import Row, peak_mb

LR, SCALE = 1e-4, 4e5
SPREAD = 1e-6
# (batch, in, out); the second is the first layer of the paper's classifier.
SHAPES = [(256, 4096, 4096), (1024, 3136, 4096)]
CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU rows are measured on a CPU machine")


class Layer:
    """A layer in the middle of training: its synapses, and what a backward pass brings to it."""

    def __init__(
        self,
        batch: int,
        units_in: int,
        units_out: int,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        generator = torch.Generator(device).manual_seed(batch)

        def normal(*shape: int, std: float) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).mul_(std)

        self.weight = normal(units_out, units_in, std=0.02)
        self.anchor = self.weight + normal(units_out, units_in, std=SPREAD)
        self.flexibility = ops.flexibility_field(self.weight.shape, seed=1, device=device)
        self.x = normal(batch, units_in, std=1.0).relu().to(dtype)
        self.grad_out = normal(batch, units_out, std=1.0 / batch).to(dtype)
        self.post = normal(batch, units_out, std=1.0).to(dtype)
        self.grad = torch.empty_like(self.weight)  # for the peer that keeps it
        self.words = ops.pack_mask(torch.zeros_like(self.weight, dtype=torch.bool))

    def fused(self) -> None:
        ops.linear_step_(self.weight, self.x, self.grad_out, self.anchor, self.flexibility, lr=LR, scale=SCALE)

    def product_and_update(self) -> None:
        """As autograd and an optimizer do it: zero_grad() gives the gradient back at each step."""
        self._update(self.grad_out.T @ self.x)

    def kept_product_and_update(self) -> None:
        """The same with a gradient whose memory is kept."""
        torch.mm(self.grad_out.T, self.x, out=self.grad)
        self._update(self.grad)

    def _update(self, grad: Tensor) -> None:
        ops.metaplastic_sgd_(self.weight, grad, self.anchor, self.flexibility, lr=LR, scale=SCALE)


def check_agreement(layer: Layer) -> None:
    """Both ways give the same weights, up to the rounding of the product's sum and of the weight."""
    start = layer.weight.clone()
    layer.fused()
    ours = layer.weight.clone()
    layer.weight.copy_(start)
    layer.product_and_update()
    terms = layer.grad_out.abs().T @ layer.x.abs()  # each sum of B products is at most B U of this off
    bound = LR * 2 * (len(layer.x) + 8) * 2**-24 * terms + 4 * start.abs() * 2**-24
    assert bool(((ours - layer.weight).abs() <= bound).all())


SETUP = """
import sys
sys.path.insert(0, {path!r})
from bench_linear import Layer
layer = Layer{shape}
"""


def memory(shape: tuple[int, int, int], call: str) -> float:
    return peak_mb(SETUP.format(path=__file__.rpartition("/")[0], shape=shape), f"layer.{call}()")


@CPU_ONLY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_linear_step(race: Callable[..., Row], shape: tuple[int, int, int], kept: bool) -> None:
    layer = Layer(*shape)
    check_agreement(layer)
    peer, name = (
        (layer.kept_product_and_update, "product into a kept gradient, fused update")
        if kept
        else (layer.product_and_update, "product, fused update")
    )
    row = Row(f"linear_step_, batch {shape[0]}, {shape[1]} to {shape[2]}", name, 1.0, at_most=True)
    if not kept:
        row.peak_mb = (memory(shape, "fused"), memory(shape, "product_and_update"))
        gradient = layer.grad.numel() * 4 / 2**20
        # Less memory by the gradient matrix, but for the 16 MB of it that exist at a time.
        assert row.peak_mb[1] - row.peak_mb[0] >= gradient - 16 - 2, row.peak_mb
        row.note = f"the gradient matrix has {gradient:.0f} MB"
    race(row, layer.fused, peer, rounds=40, steady=True)


def formula(w: Tensor, g: Tensor, a: Tensor, f: Tensor) -> None:
    """The update as the paper writes it, in place; for the GPU's peer, compiled."""
    alpha = 1 - torch.tanh(SCALE * (1 - f) / f * (w - a).abs()) ** 2
    w.sub_(LR * alpha * g)


def gpu_peak_mb(call: Callable[[], object]) -> float:
    """How far allocated memory rises in a call, in MB."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "tf32"])
@pytest.mark.parametrize("shape", [(1024, 9216, 4096), (256, 4096, 4096)], ids=str)
def test_gpu_linear_step(
    gpu_race: Callable[..., Row],
    gpu_backend: None,
    backend: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    layer = Layer(*shape, device="cuda", dtype=dtype)
    update = torch.compile(formula)

    def peer() -> None:
        update(layer.weight, layer.grad_out.T @ layer.x, layer.anchor, layer.flexibility)

    peer(), layer.fused()
    name = "bf16" if dtype is torch.bfloat16 else "tf32"
    row = Row(
        f"linear_step_, batch {shape[0]}, {shape[1]} to {shape[2]}, {name} ({backend})",
        "cuBLAS product, torch.compile of the update",
        1.3,
        at_most=False,
    )
    row.peak_mb = (gpu_peak_mb(layer.fused), gpu_peak_mb(peer))
    # No gradient matrix: what is left are the counts of conversions.
    assert row.peak_mb[0] < 1, row.peak_mb
    gpu_race(row, layer.fused, peer)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton"])
def test_gpu_hebbian_skips_functional_tiles(
    gpu_race: Callable[..., Row], gpu_backend: None, backend: str
) -> None:
    """With no silent synapse left the second product must not be made: the time is that without a mask."""
    layer = Layer(1024, 4096, 4096, device="cuda", dtype=torch.bfloat16)

    def with_mask() -> None:
        ops.linear_step_(
            layer.weight, layer.x, layer.grad_out, layer.anchor, layer.flexibility, layer.words, layer.post,
            lr=LR, scale=SCALE, threshold=1.0,
        )  # fmt: skip

    row = Row(
        f"linear_step_, Hebbian, none silent ({backend})", "linear_step_ without a mask", 1.1, at_most=True
    )
    gpu_race(row, with_mask, layer.fused)
