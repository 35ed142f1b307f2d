"""The step inside the gradient's product, against the library's product followed by an update."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from flexkern import Field, ops
from flexkern.benchmarks import workloads
from flexkern.benchmarks.bench_metaplastic import LR, SCALE, SPREAD
from flexkern.benchmarks.case import CPU, GPU, Comparison, Peer, Setting, Work, at_most, case, faster
from flexkern.benchmarks.ceilings import tf32
from flexkern.benchmarks.peers import formula
from flexkern.benchmarks.workloads import SUMS, Workload
from flexkern.fields import Purpose
from flexkern.measure import peak_mb

GRADIENT = 2.0**-13  # of grad_out: steps that leave alpha where it is, see bench_metaplastic
# (batch, in, out). The second of the CPU's is the first layer of the paper's classifier.
CPU_SHAPES = [(256, 4096, 4096), (1024, 3136, 4096)]
GPU_SHAPES = [(1024, 9216, 4096), (256, 4096, 4096)]
QUICK_SHAPE = (32, 256, 128)
# How far the products of two numbers and their sum of B terms may be off, relative to the sum of sizes: float32
# rounds each partial sum; tensor cores may cut sums off where float32 rounds (twice as much), tf32 cuts both
# factors off to 11 bits, and bfloat16 factors multiply exactly, but the peer's gradient is rounded to bfloat16.
ROUNDING: dict[str, Callable[[int], float]] = {
    "float32": lambda batch: 2 * batch * 2**-24,
    "tf32": lambda batch: 2 * (batch * 2**-23 + 2 * 2**-10),
    "bfloat16": lambda batch: 2 * batch * 2**-23 + 2**-8,
}
Shape = tuple[int, int, int]


class Layer:
    """A layer in the middle of training: its synapses, and what a backward pass brings to it.

    Args:
        shape: (batch, in, out).
        product: "float32", "tf32" or "bfloat16": what is multiplied. The synapses are float32.
    """

    def __init__(self, shape: Shape, device: str, product: str = "float32") -> None:
        batch, units_in, units_out = shape
        generator = torch.Generator(device).manual_seed(batch)
        dtype = torch.bfloat16 if product == "bfloat16" else torch.float32

        def normal(*shape: int, std: float) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).mul_(std)

        self.product = product
        self.weight = normal(units_out, units_in, std=0.02)
        self.anchor = self.weight + normal(units_out, units_in, std=SPREAD)
        self.flexibility = ops.flexibility_field(self.weight.shape, seed=1, device=device)
        self.x = normal(batch, units_in, std=1.0).relu().to(dtype)
        self.grad_out = normal(batch, units_out, std=GRADIENT / batch).to(dtype)
        self.post = normal(batch, units_out, std=1.0).to(dtype)
        self.words = ops.pack_mask(torch.zeros_like(self.weight, dtype=torch.bool))
        self.grad = torch.zeros(units_out, units_in, dtype=dtype, device=device)  # for the peer that keeps it
        self.compiled = torch.compile(_update)

    def fused(self) -> None:
        ops.linear_step_(self.weight, self.x, self.grad_out, self.anchor, self.flexibility, lr=LR, scale=SCALE)

    def hebbian(self) -> None:
        """With a mask that has no silent synapse in it, so that there is nothing to convert."""
        ops.linear_step_(
            self.weight, self.x, self.grad_out, self.anchor, self.flexibility, self.words, self.post,
            lr=LR, scale=SCALE, threshold=1.0,
        )  # fmt: skip

    def product_and_update(self) -> None:
        """As autograd and an optimizer do it: zero_grad() gives the gradient back at each step."""
        self._update(self.grad_out.T @ self.x)

    def kept_product_and_update(self) -> None:
        """The same with a gradient whose memory is kept."""
        torch.mm(self.grad_out.T, self.x, out=self.grad)
        self._update(self.grad)

    def product_and_compiled_update(self) -> None:
        self.compiled(self.weight, self.grad_out.T @ self.x, self.anchor, self.flexibility)

    def _update(self, grad: Tensor) -> None:
        grad = grad.to(self.weight.dtype)  # as autograd hands over the gradient of a product in lower precision
        ops.metaplastic_sgd_(self.weight, grad, self.anchor, self.flexibility, lr=LR, scale=SCALE)

    def work(self) -> Work:
        """One product; w, a and f read, w written, and the batch read."""
        (batch, units_in), units_out = self.x.shape, len(self.weight)
        data = self.x.element_size() * batch * (units_in + units_out)
        return Work(16 * self.weight.numel() + data, 2 * batch * units_in * units_out, self.product)


def _update(w: Tensor, g: Tensor, a: Tensor, f: Tensor) -> None:
    formula.update(w, g, a, f, LR, SCALE)


def check_agreement(layer: Layer, ours: Callable[[], None], peer: Callable[[], None]) -> None:
    """Both ways give the same weights, up to the rounding of the product's sum and of the weight."""
    start = layer.weight.clone()
    layer.grad_out.div_(GRADIENT)  # so that weights move by far more than they are rounded; exact, both ways
    ours()
    mine = layer.weight.clone()
    layer.weight.copy_(start)
    peer()
    theirs = layer.weight.clone()
    layer.weight.copy_(start)
    terms = layer.grad_out.float().abs().T @ layer.x.float().abs()
    # 8 ulp for alpha: 1 - tanh^2 is off by a few ulp of 1. Then a few roundings of w.
    relative = ROUNDING[layer.product](len(layer.x)) + 8 * 2**-24
    assert bool(((mine - theirs).abs() <= LR * relative * terms + 4 * start.abs() * 2**-24).all())
    layer.grad_out.mul_(GRADIENT)
    # The weights did move, by far more than what is forgiven.
    assert float((mine - start).norm()) > 10 * float((mine - theirs).norm())


def check_memory(layer: Layer) -> None:
    """The gradient matrix is never there, but for the block of at most 16 MB that a CPU works on at a time."""
    device = layer.weight.device.type
    gradient = layer.grad.numel() * layer.grad.element_size() / 2**20
    ours, theirs = (peak_mb(call, device) for call in (layer.fused, layer.product_and_update))
    if ours is None or theirs is None:
        return  # memory cannot be told here, and no figure is given either
    if device == GPU:
        assert ours < 1, f"ours needs {ours:.1f} MB; only the counts of conversions are expected"
    # A CPU's block, and two huge pages of 2 MB for its ends; then 2 MB of anything else.
    assert theirs - ours >= gradient - (2 if device == GPU else 16 + 4 + 2), (
        f"ours needs {ours:.1f} MB and the peer {theirs:.1f}, with a gradient of {gradient:.0f} MB"
    )


def build(shape: Shape, product: str, at: Setting) -> Comparison:
    if at.quick:
        shape = QUICK_SHAPE
    on_gpu = at.device == GPU
    layer = Layer(shape, at.device, product)

    def agrees(peer: Callable[[], None]) -> Callable[[], None]:
        return partial(check_agreement, layer, layer.fused, peer)

    def agrees_in_less_memory() -> None:
        agrees(layer.product_and_update)()
        if not at.quick:  # a small gradient is lost among pages
            check_memory(layer)

    library = "cuBLAS product" if on_gpu else "product"
    peers = [
        Peer(
            f"{library}, fused update", layer.product_and_update, agrees_in_less_memory,
            None if on_gpu else at_most(1.0),
        ),
        Peer(
            f"{library} into a kept gradient, fused update", layer.kept_product_and_update,
            agrees(layer.kept_product_and_update), None if on_gpu else at_most(1.0),
        ),
        Peer(
            f"{library}, torch.compile of the update", layer.product_and_compiled_update,
            agrees(layer.product_and_compiled_update), faster(1.3) if on_gpu else None,
        ),
    ]  # fmt: skip
    gradient = layer.grad.numel() * layer.grad.element_size() / 2**20
    comparison = Comparison(
        f"linear_step_, {named(shape, product)}{at.suffix()}",
        layer.fused,
        peers,
        layer.work(),
        steady=True,
        note=f"the gradient matrix has {gradient:.0f} MB",
    )
    return in_tf32(comparison) if product == "tf32" else comparison


def in_tf32(comparison: Comparison) -> Comparison:
    """While it is measured, products of float32 may take tf32."""
    stack = ExitStack()
    stack.enter_context(tf32(True))
    comparison.close = stack.close
    return comparison


def named(shape: Shape, product: str) -> str:
    """For titles."""
    return f"batch {shape[0]}, {shape[1]} to {shape[2]}" + ("" if product == "float32" else f", {product}")


for _shape in CPU_SHAPES:
    _name = f"linear/step-{'-'.join(map(str, _shape))}"
    case(_name, budget=True)(partial(build, _shape, "float32"))
for _shape in GPU_SHAPES:
    for _product in ("bfloat16", "tf32"):
        _name = f"linear/step-{'-'.join(map(str, _shape))}-{_product}"
        case(_name, devices=(GPU,), backends=("triton",), budget=True)(partial(build, _shape, _product))


@case("linear/none-silent", devices=(CPU, GPU), backends=("triton",))
def none_silent(at: Setting) -> Comparison:
    """With no silent synapse left the second product must not be made: the time is that without a mask."""
    shape = QUICK_SHAPE if at.quick else (1024, 4096, 4096) if at.device == GPU else CPU_SHAPES[0]
    product = "bfloat16" if at.device == GPU else "float32"
    layer = Layer(shape, at.device, product)
    peer = Peer(
        "linear_step_ without a mask", layer.fused, partial(check_agreement, layer, layer.hebbian, layer.fused),
        at_most(1.1),
    )  # fmt: skip
    title = f"linear_step_, Hebbian, none silent, {named(shape, product)}{at.suffix()}"
    return Comparison(title, layer.hebbian, [peer], layer.work(), steady=True)


# ---------------------------------------------------------------------- for the tuner

F, A = Field.uniform(1), Field.normal(1, std=0.02, purpose=Purpose.ANCHOR)


def _tuned(dtype: torch.dtype, silent: bool, procedural: bool) -> workloads.Maker:
    def make(device: torch.device, shape: tuple[int, int, int], seed: int) -> workloads.Made:
        batch, columns, rows = shape
        draw = workloads.drawer(device, seed)
        w, a, f = workloads.weights(draw, rows, columns)
        x, g = draw(batch, columns, dtype=dtype), draw(batch, rows, dtype=dtype)
        anchor, flexibility = (A, F) if procedural else (a, f)
        words = post = None
        theta = 1e30
        if silent:  # a tenth, in rows of tiles here and there; none is active enough to convert
            asleep = draw(rows, columns) > 1.3
            w.masked_fill_(asleep, 0.0)
            words, post = ops.pack_mask(asleep), draw(batch, rows, dtype=dtype)
            if w.numel() < 1 << 20:
                # In a check some are. Coincidences of quarters are exact: all backends convert the same ones.
                x, post, theta = x.mul(4).round().div(4), post.mul(4).round().div(4), 0.25
        lr, changed = workloads.shown(w)
        rest = {"lr": lr, "scale": workloads.SCALE, "threshold": theta}
        return (
            lambda: ops.linear_step_(w, x, g, anchor, flexibility, words, post, **rest),
            lambda: [changed()] if words is None else [changed(), words],
        )

    return make


for _variant, _words, _dtype, _silent, _compiles, _place in (
    ("half", "bf16", torch.bfloat16, False, ["linear-bf16-stored"], 1),
    ("half-procedural", "bf16, procedural", torch.bfloat16, False, ["linear-bf16-mixed"], 2),
    ("tf32", "tf32", torch.float32, False, ["linear-tf32-stored"], 9),
    ("half-silent", "bf16, a tenth silent, Hebbian", torch.bfloat16, True, ["linear-bf16-stored-hebbian"], 10),
):
    _what = f"linear_step_ (1024, 9216, 4096) and (256, 4096, 4096), {_words}"
    _make = _tuned(_dtype, _silent, "procedural" in _words)
    # tf32 cuts operands off after 10 bits, which the reference does not.
    _judged = workloads.ROUNDED if _variant == "tf32" else SUMS
    workloads.register(
        Workload(
            "linear", _variant, _what, _make, GPU_SHAPES, (64, 264, 136), _compiles, SUMS, _judged, place=_place
        )
    )
