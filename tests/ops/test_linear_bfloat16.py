"""linear_step_ on products that are large enough for the library's bfloat16: the gradient is rounded once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flexkern import ops
from helpers.judge_layer import (
    RULES,
    Opening,
    clone,
    halfway,
    judge_coincidence,
    judge_pass,
    judge_product,
    linear_layer,
    make_batch,
    make_layer,
    same_state,
    step_layer,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# Batch, out, in: at least 2^22 products. The second has two blocks of rows, and parts of columns.
SIZES = [(64, 257, 300), (4, 1100, 1000)]
OPENINGS = {
    "functional": None,
    "init": Opening(0.0),
    "hebbian": Opening(0.0, "hebbian", eta=0.3, prune=0.01),
}


def rounded(grad: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """What a sum within this bound may be once it is rounded to bfloat16, to nearest: 2^-8 of it away."""
    return grad, bound + 2.0**-8 * (grad.abs() + bound)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_steps_and_conversions(
    backend: str, opening: Opening | None, dtype: torch.dtype, size: tuple[int, int, int]
) -> None:
    """Coincidences, which are compared with thresholds, are not rounded: no decision is open."""
    shape, rule = size[1:], RULES["nesterov"]
    batch = make_batch(size[0], shape, 8, torch.bfloat16, exact=True)
    c, _ = judge_coincidence(batch.x, batch.post, "hebbian")
    how = None if opening is None else opening._replace(threshold=halfway(c, 1 / (64 * size[0])))
    before = make_layer(shape, 9, dtype, silent=0.0 if how is None else 0.5)
    after = clone(before)
    done = linear_layer(after, batch, rule, how)
    grad = rounded(*judge_product(batch.grad_out, batch.x))
    sums = (c, torch.zeros_like(c))
    judged = judge_pass(before, after, done, sums, rule, how or Opening(0.0), grad=grad)
    assert judged.open == 0
    assert how is None or judged.converted > 0


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bits_are_those_of_the_step_with_the_gradient_or_with_its_rounding(
    backend: str, dtype: torch.dtype, size: tuple[int, int, int]
) -> None:
    shape, rule = size[1:], RULES["nesterov"]
    batch = make_batch(size[0], shape, 8, torch.bfloat16, exact=True)
    x, post = batch.x.float(), batch.post.float()
    c, _ = judge_coincidence(batch.x, batch.post, "hebbian")
    how = Opening(halfway(c, 1 / (64 * size[0])), "hebbian", eta=0.3)
    fused = make_layer(shape, 9, dtype)
    linear_layer(fused, batch, rule, how)
    grad = batch.grad_out.float().T @ x
    coincidence = post.clamp(min=0).T @ x.clamp(min=0) / size[0]
    steps = []
    for of in (grad, grad.bfloat16().float()):
        other = make_layer(shape, 9, dtype)
        step_layer(other, rule, how, grad=of, coincidence=coincidence)
        steps.append(same_state(fused, other))
    assert any(steps)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_skipped(backend: str, bad: float) -> None:
    batch = make_batch(64, (257, 300), 8, torch.bfloat16, exact=True)
    batch.x[3, 7] = bad
    batch.grad_out[3] = 1.0
    weight = torch.zeros(257, 300)
    ops.linear_step_(weight, batch.x, batch.grad_out, torch.zeros(257, 300), 1.0, lr=1.0, scale=1.0)
    assert bool((weight[:, 7] == 0).all())
    assert bool(weight.isfinite().all())
    assert float((weight != 0).float().mean()) > 0.9
