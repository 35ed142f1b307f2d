"""The pass over a layer with the gradient of a linear layer, in plain PyTorch (docs/design.md, One pass)."""

from __future__ import annotations

from torch import Tensor

from flexkern.reference.synapse import coincidence, pass_over
from flexkern.spec.linear import Linear

__all__ = ["linear_step_"]


def linear_step_(given: Linear) -> Tensor:
    """``flexkern::linear_step_``: the gradient is grad_out^T x of x [batch, in] and grad_out [batch, out]."""
    given.check_memory()
    exact = given.weight if given.master is None else given.master
    grad = given.grad_out.to(exact.dtype).T @ given.x.to(exact.dtype)
    c = None
    if given.silent is not None:
        # The Hebbian rule has the post activity of the batch only: pre is x.
        pre, post = given.activities if len(given.activities) == 2 else (given.x, given.activities[0])
        c = coincidence(pre.to(exact.dtype), post.to(exact.dtype))
    return pass_over(given, grad, c)
