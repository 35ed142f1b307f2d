"""The optimizer's step as the number of parameters grows, and as they come in more tensors."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from flexkern import Field, ops
from flexkern.benchmarks.bench_metaplastic import (
    GRADIENT,
    LR,
    SCALE,
    SPREAD,
    Buffers,
    agrees,
    eager,
    foreach,
    listed,
    on_sets,
    ours,
)
from flexkern.benchmarks.case import CPU, GPU, ROTATION_BYTES, Point, Rotating, Setting, rotation, series
from flexkern.benchmarks.peers import formula
from flexkern.benchmarks.timing import point
from flexkern.fields import Purpose

__all__ = ["parameters", "tensor_count"]

F, A = Field.uniform(1), Field.normal(1, std=0.02, purpose=Purpose.ANCHOR)
STORED, PROCEDURAL, LOOP = "flexkern, stored f and a", "flexkern, procedural f and a", "flexkern, a call each"
EAGER, COMPILED, FOREACH = "formula, eager", "formula, torch.compile", "formula, torch._foreach_*"
SGD = "torch.optim.SGD(fused=True)"


def one_set(elements: int, device: str) -> Buffers:
    """Weight, gradient, anchor and flexibility, as bench_metaplastic has them."""
    a = ops.materialize(A, (elements,), device=device)
    noise = torch.randn(min(elements, 1 << 20), device=device)
    w, g = a.clone(), torch.empty_like(a)
    # Drawing hundreds of millions would take longer than timing them: the same go round.
    for start in range(0, elements, len(noise)):
        part = noise[: elements - start]
        g[start : start + len(part)] = GRADIENT * part
        w[start : start + len(part)] += SPREAD * part.flip(0)
    return w, g, a, ops.materialize(F, (elements,), device=device)


def make_sets(elements: int, device: str) -> list[Buffers]:
    """Sets that no cache holds; one where it alone is too large for that."""
    first = one_set(elements, device)
    count = 1 if 16 * elements >= ROTATION_BYTES else rotation(16 * elements)
    copies = [tuple(t.clone() for t in first) for _ in range(count - 1)]
    return [first, *copies]  # type: ignore[list-item]


def procedural(w: Tensor, g: Tensor, _a: Tensor, _f: Tensor) -> None:
    ops.metaplastic_sgd_(w, g, A, F, lr=LR, scale=SCALE)


def parameter_counts(at: Setting) -> list[int]:
    """1e3, 3e3, 1e4 and so on, up to 3e8; on a GPU to 1e9."""
    decades = range(3, 6) if at.quick else range(3, 9)
    counts = [m * 10**decade for decade in decades for m in (1, 3)]
    if at.quick:
        return counts[:-1]
    return [*counts, 10**9] if at.device == GPU else counts


@series(
    "growth/parameters",
    title="A step of the optimizer",
    x="parameters",
    y="seconds",
    devices=(CPU, GPU),
)
def parameters(at: Setting) -> Iterator[Point]:
    """A call on one tensor, launch by Python included."""
    compiled = torch.compile(eager, dynamic=True)  # compiled once; as fast as for one size each
    for peer in (eager, compiled):
        agrees(peer, at.device)
    for elements in parameter_counts(at):
        yield _step(elements, compiled, at)
        gc.collect()  # the largest buffers are a good part of the memory there is
        if at.device == GPU:
            torch.cuda.empty_cache()


def _step(elements: int, compiled: Callable[..., object], at: Setting) -> Point:
    sets = make_sets(elements, at.device)
    calls = {
        STORED: on_sets(ours, sets),
        PROCEDURAL: on_sets(procedural, sets),
        SGD: Rotating([formula.fused_sgd([w], [g], LR).step for w, g, _, _ in sets]),
        COMPILED: on_sets(compiled, sets),
        EAGER: on_sets(eager, sets),
    }
    return point(elements, calls, at.device, seconds=at.size(1, 0))


@series(
    "growth/tensor-count",
    title="A step of the optimizer, the same parameters in more tensors",
    x="tensors",
    y="seconds",
    devices=(CPU, GPU),
)
def tensor_count(at: Setting) -> Iterator[Point]:
    """2^20 parameters in 1 to 4096 tensors of one size; launches by Python included."""
    most = at.size(4096, 64)
    elements = 256 * most
    _check_lists(at.device)
    buffers = one_set(elements, at.device)
    tensors = 1
    while tensors <= most:
        ws, gs, anchors, fs = (cut(t, tensors) for t in buffers)
        calls = {
            STORED: partial(listed, ws, gs, anchors, fs),
            LOOP: partial(single_calls, ws, gs, anchors, fs),
            SGD: formula.fused_sgd(ws, gs, LR).step,
            FOREACH: partial(foreach, ws, gs, anchors, fs),
        }
        yield point(tensors, calls, at.device, seconds=at.size(1, 0))
        tensors *= 4


def cut(whole: Tensor, tensors: int) -> list[Tensor]:
    """Copies of its parts, each with memory of its own, as a network's parameters have."""
    return [part.clone() for part in whole.split(len(whole) // tensors)]


def single_calls(ws: list[Tensor], gs: list[Tensor], anchors: list[Tensor], fs: list[Tensor]) -> None:
    for w, g, a, f in zip(ws, gs, anchors, fs, strict=True):
        ours(w, g, a, f)


def _check_lists(device: str) -> None:
    """Lists, single calls and torch's multi-tensor operators take the same step."""
    buffers = one_set(4096, device)
    buffers[1].div_(GRADIENT)  # steps that can be told from rounding
    results = []
    for update in (listed, single_calls, foreach):
        ws, gs, anchors, fs = (cut(t, 4) for t in buffers)
        update(ws, gs, anchors, fs)
        results.append(torch.cat(ws))
    mine, singly, theirs = results
    assert torch.equal(mine, singly)
    # 1 - tanh^2 is off by a few ulp of 1 (4 * 2^-24); then one rounding of w each.
    w, g = buffers[:2]
    bound = LR * g.abs() * 8 * 2**-24 + 4 * w.abs() * 2**-24
    assert bool(((mine - theirs).abs() <= bound).all())
    assert not torch.equal(mine, w)
