"""One pass over a layer, a third of it silent, against the same written in PyTorch and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flexkern import Field, ops
from flexkern.benchmarks import workloads
from flexkern.benchmarks.bench_metaplastic import GRADIENT, LR, SCALE, SPREAD
from flexkern.benchmarks.case import (
    CPU,
    GPU,
    Comparison,
    Goal,
    Peer,
    Rotating,
    Setting,
    Work,
    at_most,
    case,
    faster,
    rotation,
)
from flexkern.benchmarks.peers import formula
from flexkern.fields import Purpose

SILENT = 1 / 3
A_COPY = "a copy is another operation: what the bytes cost"
THRESHOLD = 0.999  # activities are uniform on (0, 1): about one silent synapse in two million converts


class Layer(NamedTuple):
    weight: Tensor
    grad: Tensor
    anchor: Tensor
    flexibility: Tensor
    mask: Tensor  # the peers'
    words: Tensor  # packed, ours
    pre: Tensor
    post: Tensor


def make_layer(seed: int, units: int, device: str, gradient: float = GRADIENT) -> Layer:
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
        weight, normal(gradient), anchor, f, mask.float(), ops.pack_mask(mask), uniform(units), uniform(units)
    )


def ours(layer: Layer) -> Tensor:
    w, g, a, f, _, words, pre, post = layer
    done = ops.synapse_step_(w, g, a, f, words, pre, post, threshold=THRESHOLD, lr=LR, scale=SCALE)
    assert isinstance(done, ops.Conversions)
    return done.converted


def written(layer: Layer) -> Tensor:
    """The peers. Their mask is float32, 1: silent, and there is no torch.where: from a bool mask torch 2.13
    makes code that takes almost three times as long. Silent weights are 0, so they may be subtracted from."""
    w, g, a, f, silent, _, pre, post = layer
    converts = silent * (post[:, None] * pre >= THRESHOLD)
    w.sub_((1 - silent) * (LR * formula.gate(w, a, f, SCALE) * g) - converts * a)
    silent.sub_(converts)
    return converts.sum()


def check_agreement(peer: Callable[[Layer], Tensor], units: int, device: str) -> None:
    mine, theirs = (make_layer(99, units, device, gradient=1.0) for _ in range(2))
    for layer in (mine, theirs):  # so that many convert: a quarter of the units are as active as can be
        layer.pre[: units // 4] = 1.0
        layer.post[: units // 4] = 1.0
    before = mine.weight.clone()
    count = int(ours(mine).sum())
    assert count == int(peer(theirs)) > 0
    assert torch.equal(ops.unpack_mask(mine.words, units), theirs.mask != 0)
    # 1 - tanh^2 is off by a few ulp of 1 (4 * 2^-24); then one rounding of w each.
    bound = LR * mine.grad.abs() * 8 * 2**-24 + 2 * mine.anchor.abs() * 2**-24 + 2**-40
    assert bool(((mine.weight - theirs.weight).abs() <= bound).all())
    moved = (mine.weight != before).float().mean()
    assert float(moved) > 0.5, f"only {float(moved):.0%} of the weights moved: there is little to compare"


@case("synapse/step", devices=(CPU, GPU), backends=("cuda", "triton"), budget=True)
def step(at: Setting) -> Comparison:
    on_gpu = at.device == GPU
    units = at.size(16384 if on_gpu else 4096, 128)
    layers = [make_layer(i, units, at.device) for i in range(1 if on_gpu else rotation(16 * units**2, most=4))]
    compiled = torch.compile(written)

    def on_layers(call: Callable[[Layer], object]) -> Rotating:
        return Rotating([partial(call, layer) for layer in layers])

    def peer(name: str, call: Callable[[Layer], Tensor], goal: Goal | None = None) -> Peer:
        return Peer(name, on_layers(call), partial(check_agreement, call, units, at.device), goal)

    peers = [
        peer("torch.compile of the formula", compiled, at_most(1.0) if on_gpu else faster(2.2)),
        peer("the formula in eager PyTorch", written),
    ]
    title = f"synapse_step_, {units} x {units}, a third silent{at.suffix()}"
    # A random third leaves no cache line without a functional synapse: w, g, a and f are read, w written.
    return Comparison(title, on_layers(ours), peers, Work(20 * units**2 + units**2 // 8))


def mask(packs: bool, at: Setting) -> Comparison:
    on_gpu = at.device == GPU
    units = at.size(16384 if on_gpu else 4096, 128)
    of_mask, of_words = units**2, units**2 // 8
    sets = range(1 if on_gpu else rotation(of_mask, most=4))
    asleep = [torch.rand(units, units, device=at.device) < SILENT for _ in sets]
    words = [ops.pack_mask(one) for one in asleep]
    halves = [torch.zeros(2, (of_mask + of_words) // 2, dtype=torch.uint8, device=at.device) for _ in sets]
    name = "pack_mask" if packs else "unpack_mask"
    ours = [partial(ops.pack_mask, a) if packs else partial(ops.unpack_mask, w, units)
            for a, w in zip(asleep, words, strict=True)]  # fmt: skip
    copies = [partial(half[0].copy_, half[1]) for half in halves]
    copy = Peer(
        "a copy that moves as many bytes", Rotating(copies), A_COPY, at_most(1 / 0.7) if on_gpu else None
    )
    title = f"{name}, {units} x {units}{at.suffix()}"
    return Comparison(title, Rotating(ours), [copy], Work(of_mask + of_words))


for _packs in (True, False):
    _name = f"synapse/{'pack' if _packs else 'unpack'}_mask"
    case(_name, devices=(CPU, GPU), backends=("cuda", "triton"))(partial(mask, _packs))


# ---------------------------------------------------------------------- for the tuner

F, A = Field.uniform(1), Field.normal(1, std=0.02, purpose=Purpose.ANCHOR)


def _tuned(sources: str) -> workloads.Maker:
    def make(device: torch.device, shape: tuple[int, int], seed: int) -> workloads.Made:
        rows, columns = shape
        draw = workloads.drawer(device, seed)
        w, a, f = workloads.weights(draw, rows, columns)
        g, pre, post = draw(rows, columns), draw(columns).relu_(), draw(rows).relu_()
        asleep = draw(rows, columns) > 0.43  # a third
        w.masked_fill_(asleep, 0.0)
        words = ops.pack_mask(asleep)
        stored = sources == "stored"
        anchor, flexibility = (a if stored else A), (f if stored else F)
        # In a check a threshold that some reach; when timed none, as a step converts few.
        theta = 4.0 if w.numel() < 1 << 20 else 1e30
        rest = {"lr": workloads.LR, "scale": workloads.SCALE, "threshold": theta}
        return (
            lambda: ops.synapse_step_(w, g, anchor, flexibility, words, pre, post, **rest),
            lambda: [w, words],
        )

    return make


def _tuned_mask(packs: bool) -> workloads.Maker:
    def make(device: torch.device, shape: tuple[int, int], seed: int) -> workloads.Made:
        asleep = workloads.drawer(device, seed)(*shape) > 0.43
        words = ops.pack_mask(asleep)
        written: list[Tensor] = []

        def call() -> None:
            written[:] = [ops.pack_mask(asleep) if packs else ops.unpack_mask(words, shape[1])]

        return call, lambda: written

    return make


_THIRD = "8192 x 8192, a third silent"
for _kernel, _variant, _what, _make, _compiles, _place in (
    ("synapse", "stored", _THIRD, _tuned("stored"), ["synapse-stored-fp32-rate"], 8),
    ("synapse", "mixed", f"{_THIRD}, procedural", _tuned("mixed"), ["synapse-mixed-fp32-rate"], 11),
    ("synapse_step_", "", _THIRD, _tuned("stored"), [], 16),
    ("pack_mask", "", "8192 x 8192", _tuned_mask(True), [], 19),
    ("unpack_mask", "", "8192 x 8192", _tuned_mask(False), [], 20),
):
    workloads.register(
        workloads.Workload(_kernel, _variant, _what, _make, [(8192, 8192)], (64, 136), _compiles, place=_place)
    )
