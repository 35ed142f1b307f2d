"""The norm that trainers log is that of the gradients that exist; what would clip the others is an error."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from flexkern.optim import MetaplasticSGD, fuse_into_backward
from helpers.nets import batches, mlp, optimizer_of

INPUTS, LABELS = batches(1)[0]
FOREACH = (None, True, False)


def after_backward(**layers: bool) -> tuple[nn.Module, MetaplasticSGD]:
    model = nn.Sequential(nn.Linear(INPUTS.shape[1], 10, **layers)) if layers else mlp()
    optimizer = optimizer_of(model)
    fuse_into_backward(model, optimizer)
    nn.functional.cross_entropy(model(INPUTS), LABELS).backward()
    return model, optimizer


def existing(model: nn.Module) -> list[Tensor]:
    return [p.grad for name, p in model.named_parameters() if name.endswith("bias")]


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
def test_an_infinite_limit_tells_the_norm_of_the_others(foreach: bool | None, norm_type: float) -> None:
    model, optimizer = after_backward()
    before = [grad.clone() for grad in existing(model)]
    weights = [p.detach().clone() for p in model.parameters()]
    norm = clip_grad_norm_(model.parameters(), math.inf, norm_type, foreach=foreach)
    # A sum of four positive numbers, two of them 0, in another order: at most 3 roundings each, and a root.
    assert norm.item() == pytest.approx(get_total_norm(before, norm_type).item(), rel=2**-21, abs=0.0)
    assert norm.item() > 0
    assert all(torch.equal(grad, kept) for grad, kept in zip(existing(model), before, strict=True))
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), weights, strict=True))
    assert (
        get_total_norm([p.grad for p in model.parameters()], norm_type, foreach=foreach).item() == norm.item()
    )
    optimizer.step()


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("max_norm", [1e-3, 1e9])
def test_a_finite_limit_is_refused_before_anything_is_clipped(foreach: bool | None, max_norm: float) -> None:
    """Also one that the others keep: the norm that counts may be far over it."""
    model, _ = after_backward()
    before = [grad.clone() for grad in existing(model)]
    with pytest.raises(RuntimeError, match=r"finite max_norm needs .* does not exist.*max_norm=inf"):
        clip_grad_norm_(model.parameters(), max_norm, foreach=foreach)
    assert all(torch.equal(grad, kept) for grad, kept in zip(existing(model), before, strict=True))


def test_a_model_of_which_no_gradient_exists() -> None:
    model, _ = after_backward(bias=False)
    for foreach in FOREACH:
        assert clip_grad_norm_(model.parameters(), math.inf, foreach=foreach).item() == 0


@pytest.mark.parametrize("foreach", FOREACH)
def test_a_gradient_that_is_not_finite_is_told_and_clips_nothing(foreach: bool | None) -> None:
    model, _ = after_backward()
    grads = existing(model)
    grads[0][0] = math.inf
    assert clip_grad_norm_(model.parameters(), math.inf, foreach=foreach).item() == math.inf
    assert grads[0][0] == math.inf
    assert grads[0][1:].isfinite().all()
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(model.parameters(), math.inf, error_if_nonfinite=True, foreach=foreach)


def test_the_norm_is_a_number_like_any_other() -> None:
    model, _ = after_backward()
    norm = clip_grad_norm_(model.parameters(), math.inf)
    value = norm.item()
    assert type(2 * norm) is Tensor
    for same in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), norm.cpu(), norm.detach(), norm + 0):
        assert same.item() == value
    assert (float(norm), f"{norm:.3f}") == (value, f"{value:.3f}")
    # In place as well: only the factor that clipping computes from it is left out.
    assert torch.equal(torch.ones(2).mul_(norm), torch.full((2,), value))


READS: dict[str, Callable[[Tensor], object]] = {
    "norm": lambda grad: grad.norm(),
    "torch.norm": lambda grad: torch.norm(grad).item(),
    "item": lambda grad: torch.linalg.vector_norm(grad).item(),
    "float": lambda grad: float(torch.linalg.vector_norm(grad)),
    "print": lambda grad: str(torch.linalg.vector_norm(grad)),
    "sum": lambda grad: torch.linalg.vector_norm(grad) + 1,
    "of rows": lambda grad: torch.linalg.vector_norm(grad, dim=1),
    "of one": lambda grad: torch._foreach_norm([grad])[0].item(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_alone_it_has_no_norm(read: Callable[[Tensor], object]) -> None:
    model, _ = after_backward()
    with pytest.raises(RuntimeError, match="a gradient that does not exist"):
        read(model[0].weight.grad)
