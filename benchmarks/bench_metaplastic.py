"""The flexible update against its peers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from flexkern import Field, ops
from flexkern.benchmarks import workloads
from flexkern.benchmarks.case import (
    CPU,
    GPU,
    Comparison,
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

LR, SCALE = 1e-4, 4e5
SPREAD = 1e-6  # |w - a|: alpha spans (0, 1) at this scale
# Standard deviation of gradients: so small that after a whole race alpha still spans (0, 1).
# With 1 all gates shut, and what is left is subnormal: torch.compile's formula then takes twice its time.
GRADIENT = 1e-4
BACKENDS = ("cuda", "triton")
COMPILED, EAGER = "torch.compile of the formula", "the formula in eager PyTorch"
COPY = "device-to-device copy of as many bytes"
ANOTHER_RULE = "plain SGD is another rule, and the least that a step can cost"

Buffers = tuple[Tensor, Tensor, Tensor, Tensor]  # weight, gradient, anchor, flexibility
Update = Callable[[Tensor, Tensor, Tensor, Tensor], object]


def ours(w: Tensor, g: Tensor, a: Tensor, f: Tensor) -> None:
    ops.metaplastic_sgd_(w, g, a, f, lr=LR, scale=SCALE)


def eager(w: Tensor, g: Tensor, a: Tensor, f: Tensor) -> None:
    formula.update(w, g, a, f, LR, SCALE)


def listed(ws: list[Tensor], gs: list[Tensor], anchors: list[Tensor], fs: list[Tensor]) -> None:
    ops.metaplastic_sgd_(ws, gs, anchors, fs, lr=LR, scale=SCALE)


def foreach(ws: list[Tensor], gs: list[Tensor], anchors: list[Tensor], fs: list[Tensor]) -> None:
    formula.update_foreach(ws, gs, anchors, fs, LR, SCALE)


def make_buffers(count: int, elements: int, device: str, gradient: float = GRADIENT) -> list[Buffers]:
    """Sets of buffers on fresh random values, with gradients of this standard deviation."""
    generator = torch.Generator(device).manual_seed(count)

    def normal(std: float) -> Tensor:
        return torch.randn(elements, generator=generator, device=device).mul_(std)

    sets = []
    for i in range(count):
        w = normal(0.02)
        a = w + normal(SPREAD)
        sets.append((w, normal(gradient), a, ops.flexibility_field((elements,), seed=i, device=device)))
    return sets


def agrees(peer: Update, device: str) -> None:
    """Ours and the peer take the same step, up to the cancellation of 1 - tanh^2 in the peer's formula."""
    ((w, g, a, f),) = make_buffers(1, 100_000, device, gradient=1.0)
    theirs = w.clone()
    ours(w, g, a, f)
    peer(theirs, g, a, f)
    # 1 - tanh^2 is off by a few ulp of 1 (4 * 2^-24); then one rounding of w each.
    bound = LR * g.abs() * 8 * 2**-24 + 2 * w.abs() * 2**-24
    assert bool(((w - theirs).abs() <= bound).all())
    assert not torch.equal(w, a)


def on_sets(update: Update, sets: list[Buffers]) -> Rotating:
    return Rotating([partial(update, *buffers) for buffers in sets])


def plain_sgd(elements: int, device: str) -> Peer:
    """The cheapest of peers, on buffers of its own: 12 bytes a parameter."""
    calls = []
    for i in range(rotation(8 * elements, most=8 if device == CPU else 1)):
        generator = torch.Generator(device).manual_seed(i)
        w, g = (torch.randn(elements, generator=generator, device=device) for _ in range(2))
        calls.append(formula.fused_sgd([w], [g], LR).step)
    return Peer("torch.optim.SGD(fused=True)", Rotating(calls), ANOTHER_RULE)


@case("metaplastic/step", devices=(CPU, GPU), backends=BACKENDS, small_pages=True, budget=True)
def step(at: Setting) -> Comparison:
    on_gpu = at.device == GPU
    elements = at.size(1 << 28 if on_gpu else 1 << 24, 1 << 16)
    sets = make_buffers(1 if on_gpu else rotation(16 * elements), elements, at.device)
    compiled = torch.compile(eager)
    sgd = plain_sgd(elements, at.device)
    peers = [
        Peer(COMPILED, on_sets(compiled, sets), lambda: agrees(compiled, at.device), faster(2.2)),
        Peer(EAGER, on_sets(eager, sets), lambda: agrees(eager, at.device)),
        sgd,
    ]
    if on_gpu:
        source = torch.randn(5 * elements // 2, device=at.device)
        target = torch.empty_like(source)  # 20 bytes a parameter, read and written, as the step moves
        peers.append(Peer(COPY, lambda: target.copy_(source), "a copy is no step", at_most(1 / 0.92)))
    else:
        peers[1].goal = faster(25)
        sgd.goal = at_most(1.45)  # bytes read alone say 16 / 8 = 2, those moved 20 / 12 = 1.67
    title = f"step, stored f, {count(elements)} float32{at.suffix()}"
    return Comparison(title, on_sets(ours, sets), peers, Work(20 * elements))


@case("metaplastic/gated-step", devices=(CPU, GPU), backends=BACKENDS, small_pages=True, budget=True)
def gated_step(at: Setting) -> Comparison:
    on_gpu = at.device == GPU
    elements = at.size(1 << 28 if on_gpu else 1 << 24, 1 << 16)
    # The flexibility buffers serve as stored alphas: any values in (0, 1) do.
    sets = make_buffers(1 if on_gpu else rotation(12 * elements), elements, at.device)

    def gated(w: Tensor, g: Tensor, _: Tensor, alpha: Tensor) -> None:
        ops.gated_sgd_(w, g, alpha, lr=LR)

    def addcmul(w: Tensor, g: Tensor, _: Tensor, alpha: Tensor) -> None:
        w.addcmul_(alpha, g, value=-LR)

    def check() -> None:
        ((w, g, a, f),) = make_buffers(1, 100_000, at.device, gradient=1.0)
        theirs = w.clone()
        gated(w, g, a, f)
        addcmul(theirs, g, a, f)
        # Two roundings of the step, one of w, in either.
        assert bool(((w - theirs).abs() <= 4 * 2**-24 * (LR * g.abs() + w.abs())).all())

    sgd = plain_sgd(elements, at.device)
    sgd.goal = at_most(1.2)  # bytes read alone say 12 / 8 = 1.5, those moved 16 / 12 = 1.33
    return Comparison(
        f"item-gated step, {count(elements)} float32{at.suffix()}",
        on_sets(gated, sets),
        [sgd, Peer("torch.addcmul_", on_sets(addcmul, sets), check)],
        Work(16 * elements),
    )


@case("metaplastic/procedural-step", devices=(CPU, GPU), backends=BACKENDS, budget=True)
def procedural_step(at: Setting) -> Comparison:
    return procedural(at, Field.normal(1, std=0.02, purpose=Purpose.ANCHOR), "procedural f and a")


@case("metaplastic/procedural-uniform", devices=(GPU,), backends=BACKENDS, budget=True)
def procedural_uniform(at: Setting) -> Comparison:
    """The same with anchors as torch.nn.Linear begins, which cost fewer instructions."""
    a = Field.uniform(1, low=-0.02, high=0.02, purpose=Purpose.ANCHOR)
    return procedural(at, a, "procedural f and a, uniform")


@case("metaplastic/procedural-step-table", devices=(CPU, GPU), backends=BACKENDS, budget=True)
def procedural_step_by_table(at: Setting) -> Comparison:
    a = Field.normal_table(1, std=0.02, purpose=Purpose.ANCHOR)
    return procedural(at, a, "procedural f and a, normal by table")


def procedural(at: Setting, a: Field, title: str) -> Comparison:
    on_gpu = at.device == GPU
    elements = at.size(1 << 28 if on_gpu else 1 << 24, 1 << 16)
    f = Field.uniform(1)
    stored_f = ops.materialize(f, (elements,), device=at.device)
    stored_a = ops.materialize(a, (elements,), device=at.device)
    w = ops.materialize(a, (elements,), device=at.device)
    g = torch.randn(elements, device=at.device).mul_(GRADIENT)

    def regenerated(w: Tensor, g: Tensor) -> None:
        ops.metaplastic_sgd_(w, g, a, f, lr=LR, scale=SCALE)

    def stored(w: Tensor, g: Tensor) -> None:
        ours(w, g, stored_a, stored_f)

    def check() -> None:
        mine, theirs = w.clone(), w.clone()
        regenerated(mine, g / GRADIENT)
        stored(theirs, g / GRADIENT)
        # The same bits, but for anchors that a GPU draws with other roundings: an ulp of the anchor.
        assert torch.allclose(mine, theirs, rtol=4 * 2**-24, atol=0)

    sgd = plain_sgd(elements, at.device)
    if on_gpu:
        sgd.goal = at_most(1.05)
    return Comparison(
        f"step, {title}, {count(elements)} float32{at.suffix()}",
        partial(regenerated, w, g),
        [sgd, Peer("ours with both stored", partial(stored, w, g), check)],
        Work(12 * elements),
    )


@case("metaplastic/small-tensors", devices=(CPU, GPU), backends=BACKENDS)
def small_tensors(at: Setting) -> Comparison:
    tensors, elements = at.size(200, 8), 4096

    def columns(sets: list[Buffers]) -> list[list[Tensor]]:
        return [list(column) for column in zip(*sets, strict=True)]

    def check() -> None:
        mine, theirs = (columns(make_buffers(3, elements, at.device, gradient=1.0)) for _ in range(2))
        listed(*mine)
        foreach(*theirs)
        for w, v, g in zip(mine[0], theirs[0], mine[1], strict=True):
            assert bool(((w - v).abs() <= LR * g.abs() * 8 * 2**-24 + 2 * w.abs() * 2**-24).all())

    buffers = columns(make_buffers(tensors, elements, at.device))
    return Comparison(
        f"step, {tensors} tensors of {elements}{at.suffix()}",
        partial(listed, *buffers),
        [Peer("the formula with torch._foreach_*", partial(foreach, *buffers), check, faster(3))],
        Work(20 * tensors * elements),
        graph=True,
    )


@case("metaplastic/gate", devices=(CPU, GPU), backends=BACKENDS)
def gate(at: Setting) -> Comparison:
    on_gpu = at.device == GPU
    elements = at.size(1 << 28 if on_gpu else 1 << 24, 1 << 16)
    sets = make_buffers(1 if on_gpu else rotation(16 * elements), elements, at.device)

    def alpha(w: Tensor, _: Tensor, a: Tensor, f: Tensor) -> Tensor:
        return ops.metaplastic_gate(w, a, f, SCALE)

    def written(w: Tensor, _: Tensor, a: Tensor, f: Tensor) -> Tensor:
        return formula.gate(w, a, f, SCALE)

    compiled = torch.compile(written)

    def check() -> None:
        (buffers,) = make_buffers(1, 100_000, at.device)
        # 1 - tanh^2 is off by a few ulp of 1.
        assert float((alpha(*buffers) - compiled(*buffers)).abs().max()) <= 8 * 2**-24

    return Comparison(
        f"alpha of {count(elements)} float32, once per item{at.suffix()}",
        on_sets(alpha, sets),
        [Peer(COMPILED, on_sets(compiled, sets), check, faster(1.0))],
        Work(16 * elements),
    )


def count(elements: int) -> str:
    """For titles: 16.8 M."""
    return f"{elements / 1e6:.1f} M" if elements >= 1 << 20 else f"{elements}"


# ---------------------------------------------------------------------- for the tuner

F, A = Field.uniform(1), Field.normal(1, std=0.02, purpose=Purpose.ANCHOR)


def _tuned_step(sources: str) -> workloads.Maker:
    def make(device: torch.device, count: int, seed: int) -> workloads.Made:
        draw = workloads.drawer(device, seed)
        w, a, f = workloads.weights(draw, count)
        g = draw(count)
        lr, changed = workloads.shown(w)
        calls = {
            "stored": lambda: ops.metaplastic_sgd_(w, g, a, f, lr=lr, scale=workloads.SCALE),
            "mixed": lambda: ops.metaplastic_sgd_(w, g, A, F, lr=lr, scale=workloads.SCALE),
            "held": lambda: ops.gated_sgd_(w, g, f, lr=lr),
        }
        return calls[sources], lambda: [changed()]

    return make


def _tuned_gate(device: torch.device, count: int, seed: int) -> workloads.Made:
    w, a, f = workloads.weights(workloads.drawer(device, seed), count)
    written: list[Tensor] = []

    def call() -> None:
        written[:] = [ops.metaplastic_gate(w, a, f, workloads.SCALE)]

    return call, lambda: written


def _tuned_fill(device: torch.device, count: int, seed: int) -> workloads.Made:
    written: list[Tensor] = []

    def call() -> None:
        written[:] = [ops.materialize(Field.normal(seed), (count,), device=device)]

    return call, lambda: written


for _kernel, _variant, _what, _make, _compiles, _place in (
    ("sgd", "stored", "64 M float32, stored", _tuned_step("stored"), ["sgd-stored-fp32-fp32"], 5),
    ("sgd", "mixed", "64 M float32, procedural", _tuned_step("mixed"), ["sgd-mixed-fp32-fp32"], 6),
    ("sgd", "held", "64 M float32, stored alpha", _tuned_step("held"), ["sgd-held-fp32-fp32"], 7),
    ("gate", "stored", "64 M float32", _tuned_gate, ["gate-stored"], 12),
    ("fill", "any", "64 M normal values", _tuned_fill, ["fill"], 13),
    ("metaplastic_sgd_", "", "64 M float32, stored", _tuned_step("stored"), [], 14),
    ("gated_sgd_", "", "64 M float32, stored alpha", _tuned_step("held"), [], 15),
    ("metaplastic_gate", "", "64 M float32", _tuned_gate, [], 17),
    ("materialize", "", "64 M normal values", _tuned_fill, [], 18),
):
    workloads.register(
        workloads.Workload(
            _kernel, _variant, _what, _make, workloads.MILLIONS, workloads.SMALL, _compiles, place=_place
        )
    )
