"""Long random sequences of passes: on every backend the same masks, counts and weights as in float64.

Activities are multiples of 1/8, so every coincidence and every threshold is exact, and an equality is one on
all backends. In the exact sequences weights, momenta, rates and gates are short dyadic numbers too: nothing
rounds (see `shorten`), so that every backend must have the float64 oracle's values, not nearly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import flexkern
from flexkern import Field, ops, reference
from helpers.judge import Rule
from helpers.judge_layer import (
    LOW,
    Batch,
    Layer,
    Opening,
    clone,
    eighths,
    judge_coincidence,
    judge_pass,
    judge_product,
    judge_rate,
    linear_layer,
    make_layer,
    mask_of,
    materialized,
    step_layer,
)

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = {"reference": 60, "cpu": 150, "triton": 4}  # it runs in an interpreter here
# The same examples in every run; a failing one prints what it was.
FIXED = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [
        Phase.explicit,
        Phase.generate,
        Phase.target,
    ],  # shrinking takes minutes, and more in an interpreter
}


class Step(NamedTuple):
    """One call. Small numbers are in the units that are written behind them."""

    kind: str
    seed: int
    batch: int
    theta: int  # 1/64
    theta_as: str
    rule: Rule
    insert: str
    eta: float
    prune: int  # 1/64
    held: bool
    lr_as_tensor: bool
    batch_dtype: torch.dtype


class Sequence(NamedTuple):
    """A layer and the calls on it."""

    shape: tuple[int, int]
    seed: int
    silent: float
    dtype: torch.dtype
    anchor: Field | None  # None: stored
    one_flexibility: bool
    steps: list[Step]


KINDS = ("rate", "coincidence", "linear hebbian", "linear rate")
PROCEDURAL = Field.normal(11, 2, std=0.5, offset=5)


@st.composite
def sequences(draw: st.DrawFn, longest: int, *, pruning: bool) -> Sequence:
    shape = draw(st.sampled_from([(1, 1), (1, 40), (3, 33), (5, 31), (2, 70), (4, 1)]))
    silent = draw(st.sampled_from([0.0, 0.5, 1.0]))
    kinds = KINDS if silent or pruning else (*KINDS, "linear")  # a layer without a mask
    anchor = draw(st.sampled_from([None, None, PROCEDURAL]))
    inserts = ["init"] if anchor is not None else ["init", "hebbian"]

    def rule() -> Rule:
        momentum = draw(st.sampled_from([0.0, 0.5]))
        nesterov = bool(momentum) and draw(st.booleans())
        dampening = 0.0 if nesterov or not momentum else draw(st.sampled_from([0.0, 0.5]))
        lr, decay = draw(st.sampled_from([0.125, 0.25, 0.5])), draw(st.sampled_from([0.0, 0.25]))
        return Rule(lr, 4.0, decay, momentum, dampening, nesterov, draw(st.booleans()))

    def step() -> Step:
        return Step(
            draw(st.sampled_from(kinds)),
            draw(st.integers(0, 1000)),
            draw(st.sampled_from([1, 2, 4])),
            draw(st.integers(0, 160)),
            draw(st.sampled_from(["number", "0-dim", "[1]", "[out]"])),
            rule(),
            draw(st.sampled_from(inserts)),
            draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
            draw(st.integers(0, 96)) if pruning else 0,
            draw(st.booleans()),
            draw(st.booleans()),
            draw(st.sampled_from([torch.float32, *LOW])),
        )

    steps = [step() for _ in range(draw(st.integers(1, longest)))]
    dtype = draw(st.sampled_from([torch.float32, *LOW]))
    return Sequence(shape, draw(st.integers(0, 1000)), silent, dtype, anchor, draw(st.booleans()), steps)


# --------------------------------------------------------------------------- what one step is called with


class Operands(NamedTuple):
    """What a step reads besides the layer, all in multiples of 1/8."""

    grad: Tensor
    alpha: Tensor
    pre: Tensor
    post: Tensor
    coincidence: Tensor
    batch: Batch
    theta: float | Tensor


def operands(step: Step, shape: tuple[int, int]) -> Operands:
    rows, columns = shape
    theta: Any = step.theta / 64
    if step.theta_as != "number":
        sizes = {"0-dim": (), "[1]": (1,), "[out]": (rows,)}[step.theta_as]
        theta = torch.full(sizes, theta) + (torch.arange(rows) / 64 if step.theta_as == "[out]" else 0.0)
    size, seed = step.batch, step.seed
    batch = Batch(
        eighths((size, columns), seed + 1),
        eighths((size, rows), seed + 2, -8, 8),
        eighths((size, rows), seed + 3),
    )
    return Operands(
        eighths(shape, seed + 4, -8, 8),
        eighths(shape, seed + 5, 0, 8),
        eighths((columns,), seed + 6),
        eighths((rows,), seed + 7),
        eighths(shape, seed + 8),
        Batch(*(t.to(step.batch_dtype) for t in batch)),
        theta,
    )


def call(layer: Layer, anchor: Field | None, step: Step, given: Operands) -> ops.Conversions:
    """The step on a layer in whatever dtype that has."""
    exact = layer.exact.dtype
    theta = given.theta.to(exact) if isinstance(given.theta, Tensor) else given.theta
    how = Opening(theta, step.insert, step.eta, step.prune / 64)
    change: dict[str, object] = {}
    if anchor is not None:
        change["anchor"] = anchor
    if step.held:
        change |= {"alpha": given.alpha.to(exact), "flexibility": None, "scale": None}
    if step.lr_as_tensor:
        change["lr"] = torch.tensor(step.rule.lr)
    if step.kind.startswith("linear"):
        batch = Batch(*(t.to(exact) if exact is torch.float64 else t for t in given.batch))
        _, _, coincidence = step.kind.partition(" ")
        return linear_layer(layer, batch, step.rule, how if coincidence else None, coincidence, **change)
    grad = given.grad.to(exact)
    if step.kind == "rate":
        return step_layer(layer, step.rule, how, given.pre.to(exact), given.post.to(exact), grad=grad, **change)
    return step_layer(layer, step.rule, how, coincidence=given.coincidence.to(exact), grad=grad, **change)


# --------------------------------------------------------------------------- exact sequences


def exact_layer(sequence: Sequence) -> Layer:
    """Weights and anchors in multiples of 1/8, flexibilities 0 and 1 (or only 1): alpha is 0 or 1."""
    shape, seed = sequence.shape, sequence.seed
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < sequence.silent
    master = torch.where(mask, 0.0, eighths(shape, seed, -8, 8))
    flexibility = torch.ones(shape) if sequence.one_flexibility else eighths(shape, seed + 1, 0, 1) * 8
    anchor = eighths(shape, seed + 2, -8, 8)
    nothing = torch.zeros(shape)
    return Layer(
        master.to(sequence.dtype, copy=True),
        nothing,
        anchor,
        flexibility,
        nothing.clone(),
        master,
        reference.pack_mask(mask),
    )


def shorten(layer: Layer) -> None:
    """Between passes: state in multiples of 1/64, at most 4, so that the next pass does not round either.

    grad + decay w is a multiple of 2^-8 and at most 9; m / 2 + that / 2, of 2^-9; with nesterov grad + m / 2,
    of 2^-10 and at most 15; lr, of 2^-3, and alpha, of 2^-3, make the step one of 2^-16, under 8; w - step,
    under 16, has 20 bits. Anchors from a field are any floats; they are only copied: alpha is 0 or 1 whatever
    they are.
    """
    for tensor in (layer.exact, layer.buffer):
        tensor.copy_((tensor * 64).round().clamp(-256, 256) / 64)
    if layer.exact is layer.master:
        layer.weight.copy_(layer.master)


def doubled(layer: Layer) -> Layer:
    """The oracle's layer: float64, no master."""
    copies = [t.double().clone() if t.is_floating_point() else t.clone() for t in layer]
    return Layer(*copies)._replace(weight=layer.exact.double().clone())


def run_exactly(backend: str, sequence: Sequence) -> None:
    layer = exact_layer(sequence)
    oracle = doubled(layer)
    for number, step in enumerate(sequence.steps):
        given = operands(step, sequence.shape)
        before, before_oracle = mask_of(layer), oracle.weight.clone()
        with flexkern.use_backend("reference"):
            expected = call(oracle, sequence.anchor, step, given)
        with flexkern.use_backend(backend):
            done = call(layer, sequence.anchor, step, given)
        where = f"step {number} of {sequence}"
        assert torch.equal(layer.silent, oracle.silent), where
        assert torch.equal(done.converted, expected.converted), where
        assert torch.equal(done.pruned, expected.pruned), where
        assert torch.equal(layer.exact.double(), oracle.weight), where
        assert torch.equal(layer.buffer.double(), oracle.buffer), where
        assert torch.equal(layer.anchor.double(), oracle.anchor), where
        if sequence.dtype in LOW:
            assert torch.equal(layer.weight, layer.master.to(sequence.dtype)), where
        # what holds of any pass
        now = mask_of(layer)
        assert torch.equal(done.converted, (before & ~now).sum(1).to(torch.int32)), where
        assert torch.equal(done.pruned, (now & ~before).sum(1).to(torch.int32)), where
        assert (layer.weight[now] == 0).all(), where
        assert step.prune > 0 or not (now & ~before).any(), where
        assert not ((now & ~before) & (before_oracle.abs() >= step.prune / 64)).any(), where
        for state in (layer, oracle):
            shorten(state)


# --------------------------------------------------------------------------- any floats


def run_judged(backend: str, sequence: Sequence) -> None:
    """Weights of any value, alpha from 0 to 1: every step is within its bounds of the judge, from where the
    backend itself stands. Nothing is pruned, so masks do not depend on weights, and stay those of float64."""
    layer = make_layer(sequence.shape, sequence.seed, sequence.dtype, silent=sequence.silent)
    layer.grad.nan_to_num_(0.5)
    flexibility: Any = Field.uniform(3, 1) if sequence.one_flexibility else layer.flexibility
    oracle = doubled(layer)
    stored = layer._replace(
        anchor=materialized(sequence.anchor or layer.anchor, layer.master),
        flexibility=materialized(flexibility, layer.master),
    )
    for step in sequence.steps:
        given = operands(step, sequence.shape)
        before = clone(stored)
        with flexkern.use_backend("reference"):
            expected = call(oracle, sequence.anchor, step, given)
        with flexkern.use_backend(backend):
            done = call(layer._replace(flexibility=flexibility), sequence.anchor, step, given)
        assert torch.equal(layer.silent, oracle.silent)
        assert torch.equal(done.converted, expected.converted)
        linear = step.kind.startswith("linear")
        if linear:
            grad, c = judge_product(given.batch.grad_out, given.batch.x)[0], None
            if step.kind == "linear":
                c = torch.full_like(grad, -1.0)
            else:
                c, _ = judge_coincidence(given.batch.x, given.batch.post, step.kind.partition(" ")[2])
        else:
            grad = given.grad.double()
            c = judge_rate(given.pre, given.post)[0] if step.kind == "rate" else given.coincidence.double()
        exact = torch.zeros_like(grad)
        how = Opening(given.theta, step.insert, step.eta)
        alpha = given.alpha if step.held else None
        judged = judge_pass(before, stored, done, (c, exact), step.rule, how, alpha=alpha, grad=(grad, exact))
        assert judged.open == 0


# --------------------------------------------------------------------------- the tests


def check_backend(backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("flexkern.triton_kernels.synapse")
    status = flexkern.backends()[backend]
    if not status.available:
        pytest.skip(f"{backend}: {status.reason}")


def search(
    run: Callable[[str, Sequence], None], backend: str, *, longest: int, pruning: bool, times: int
) -> None:
    check_backend(backend)
    strategy = sequences(longest // 2 if backend == "triton" else longest, pruning=pruning)
    test = functools.partial(run, backend)

    @settings(max_examples=times * EXAMPLES[backend], **FIXED)
    @given(strategy)
    def sequence_passes(sequence: Sequence) -> None:
        test(sequence)

    sequence_passes()


BACKENDS = pytest.mark.parametrize("backend", EXAMPLES)


@BACKENDS
def test_exact_sequences(backend: str) -> None:
    search(run_exactly, backend, longest=12, pruning=True, times=1)


@BACKENDS
def test_sequences_of_any_floats(backend: str) -> None:
    search(run_judged, backend, longest=8, pruning=False, times=1)


@pytest.mark.slow
@BACKENDS
def test_many_exact_sequences(backend: str) -> None:
    search(run_exactly, backend, longest=30, pruning=True, times=2)


@pytest.mark.slow
@BACKENDS
def test_many_sequences_of_any_floats(backend: str) -> None:
    search(run_judged, backend, longest=20, pruning=False, times=2)
