"""Layers for the tests of the Triton passes: operands, and the mask as bool and as words.

The judge is that of judge_layer.py, on copies in the CPU's memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexkern import ops
from helpers import judge_layer
from helpers.judge import Inputs, Rule
from helpers.judge_layer import Opening

__all__ = ["Layer", "check_layer", "eighths", "make_layer", "step_arguments"]


class Layer(NamedTuple):
    """``inputs`` with weights of 0 where ``silent`` (bool) is set; ``words`` is ``silent``, packed."""

    inputs: Inputs
    silent: Tensor
    words: Tensor

    def copy(self, device: torch.device) -> Layer:
        inputs = Inputs(*(t.to(device, copy=True) for t in self.inputs))
        return Layer(inputs, self.silent, self.words.to(device, copy=True))

    def judged(self) -> judge_layer.Layer:
        """As the judge takes it."""
        return judge_layer.Layer(*(t.cpu() for t in (*self.inputs, self.words)))


def make_layer(
    shape: tuple[int, int],
    seed: int,
    dtype: torch.dtype = torch.float32,
    share: float = 0.5,
    grad_dtype: torch.dtype | None = None,
) -> Layer:
    *inputs, words = judge_layer.make_layer(shape, seed, dtype, grad_dtype, share)
    return Layer(Inputs(*inputs), ops.unpack_mask(words, shape[1]), words)


def eighths(shape: tuple[int, ...], seed: int, low: int = -2, high: int = 4) -> Tensor:
    """Multiples of 1/8, some negative: their products and sums are exact in float32, in any order."""
    return judge_layer.eighths(shape, seed, low, high)


def step_arguments(layer: Layer, rule: Rule) -> dict[str, Any]:
    low = layer.inputs.weight.dtype is not torch.float32
    return {
        **rule._asdict(),
        "momentum_buffer": layer.inputs.buffer if rule.momentum else None,
        "master": layer.inputs.master if low else None,
    }


def check_layer(
    before: Layer,
    after: Layer,
    result: ops.Conversions,
    c: Tensor | None,
    theta: float | Tensor,
    rule: Rule,
    *,
    grad: Tensor | None = None,
    grad_bound: Tensor | float = 0.0,
    insert: str = "init",
    eta: float = 1.0,
    prune: float = 0.0,
    alpha: Tensor | None = None,
    alpha_factor: float = 1.0,
) -> None:
    """``after`` is ``before`` after a pass with the exact coincidence ``c``. No decision is open: no weight is
    so near to the bound of pruning that rounding could decide; the seeds are chosen so."""
    shape = before.silent.shape
    activities = (
        torch.full(shape, torch.nan, dtype=torch.float64) if c is None else c.double()
    )  # NaN: no activities
    product = None if grad is None else (grad, torch.as_tensor(grad_bound).double().expand(shape))
    judged = judge_layer.judge_pass(
        before.judged(),
        after.judged(),
        ops.Conversions(*(t.cpu() for t in result)),
        (activities, torch.zeros_like(activities)),
        rule,
        Opening(theta if isinstance(theta, float) else theta.cpu(), insert, eta, prune),
        alpha=alpha,
        grad=product,
        gate_factor=alpha_factor,
    )
    assert judged.open == judged.open_prunings == 0
