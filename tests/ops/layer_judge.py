"""Random layers for the tests of the passes over synapses, and their float64 judge."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import judge
from flexkern import ops, reference
from judge import Inputs, Rule, make_inputs, same_bits

__all__ = ["Layer", "check_layer", "eighths", "make_layer", "step_arguments"]


class Layer(NamedTuple):
    """``inputs`` with weights of 0 where ``silent`` (bool) is set; ``words`` is ``silent``, packed."""

    inputs: Inputs
    silent: Tensor
    words: Tensor

    def copy(self, device: torch.device) -> Layer:
        inputs = Inputs(*(t.to(device, copy=True) for t in self.inputs))
        return Layer(inputs, self.silent, self.words.to(device, copy=True))


def make_layer(
    shape: tuple[int, int], seed: int, dtype: torch.dtype = torch.float32, share: float = 0.5, **kw: Any
) -> Layer:
    x = make_inputs(shape, seed, dtype, **kw)
    silent = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1000)) < share
    x = x._replace(weight=x.weight.masked_fill(silent, 0), master=x.master.masked_fill(silent, 0))
    return Layer(x, silent, reference.pack_mask(silent))


def eighths(shape: tuple[int, ...], seed: int, low: int = -2, high: int = 5) -> Tensor:
    """Multiples of 1/8, some negative: their products and sums are exact in float32, in any order."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)) / 8


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
    alpha: tuple[Tensor, Tensor | float] | None = None,
    alpha_factor: float = 1.0,
) -> None:
    """``after`` is ``before`` after a pass with the exact coincidence ``c``, in float64 with derived bounds.

    ``grad_bound`` is how far the gradient itself may be off; the step is linear in it, with a factor of at most
    lr alpha (1 + momentum) (see judge_step).
    """
    x, y = before.inputs, Inputs(*(t.cpu() for t in after.inputs))
    g = x.grad.double() if grad is None else grad
    gate, gate_bound = alpha or judge.judge_gate(x.master, x.anchor, x.flexibility, rule.scale)
    buffer = x.buffer if rule.momentum else None
    stepped = judge.judge_step(x.master, g, gate, alpha_factor * gate_bound, rule, buffer)
    reach = 1 + judge.float32(rule.momentum) * rule.nesterov
    share = judge.float32(1 - rule.dampening) if rule.momentum else 1.0
    step_bound = (
        stepped.weight_bound + judge.float32(rule.lr) * gate * reach * share * grad_bound * judge.SECOND_ORDER
    )

    silent = before.silent
    converts = torch.zeros_like(silent)
    if c is not None:
        theta_of = theta.reshape(-1, 1) if isinstance(theta, Tensor) else judge.float32(theta)
        converts = silent & (c >= theta_of) & c.isfinite()
    inserted = x.anchor.double() if insert == "init" else judge.float32(eta) * c
    functional = ~silent
    # No weight is so near to the bound that rounding could decide; the seeds are chosen so.
    prunes = (
        functional & (x.master.abs() < judge.float32(prune)) & (stepped.weight.abs() < judge.float32(prune))
    )
    near = functional & (x.master.abs() < prune) & ((stepped.weight.abs() - prune).abs() <= step_bound)
    assert not near.any()

    exact = y.weight if x.weight.dtype is torch.float32 else y.master
    old = x.weight if x.weight.dtype is torch.float32 else x.master
    kept = functional & ~prunes
    judge.assert_within(exact[kept], stepped.weight[kept], step_bound[kept])
    # eta c: c is exact, so one rounding
    judge.assert_within(exact[converts], inserted[converts], judge.U * inserted[converts].abs())
    assert (exact[prunes] == 0).all()
    untouched = silent & ~converts
    assert same_bits(exact[untouched], old[untouched])
    assert same_bits(y.weight[untouched], x.weight[untouched])
    if x.weight.dtype is not torch.float32:
        assert same_bits(y.weight[~untouched], exact[~untouched].to(y.weight.dtype))
    if rule.momentum:
        assert stepped.buffer is not None
        bound = stepped.buffer_bound + share * grad_bound * judge.SECOND_ORDER
        judge.assert_within(y.buffer[kept], stepped.buffer[kept], torch.broadcast_to(bound, kept.shape)[kept])
        assert (y.buffer[converts | prunes] == 0).all()
        assert same_bits(y.buffer[untouched], x.buffer[untouched])
    else:
        assert same_bits(y.buffer, x.buffer)
    stays = converts if insert == "hebbian" else torch.zeros_like(converts)
    assert same_bits(y.anchor[~stays], x.anchor[~stays])
    assert same_bits(y.anchor[stays], exact[stays])
    assert torch.equal(after.words.cpu(), reference.pack_mask((silent & ~converts) | prunes))
    assert torch.equal(result.converted.cpu(), converts.sum(1).int())
    assert torch.equal(result.pruned.cpu(), prunes.sum(1).int())
    for name in ("grad", "flexibility"):
        assert same_bits(getattr(y, name), getattr(x, name))
