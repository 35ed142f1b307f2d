"""MetaplasticSGD as a torch optimizer: schedulers, hooks, closures, and what it says to bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from flexkern import Field
from flexkern.optim import MetaplasticSGD

SHAPES = ((6, 5), (5,), (3, 4, 2))


def make_parameters(shapes: Any = SHAPES, seed: int = 0) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(0.3 * torch.randn(s, generator=generator)) for s in shapes]


def set_grads(params: list[Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def same_bits(left: list[Parameter], right: list[Parameter]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def test_named_parameters() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = MetaplasticSGD(model.named_parameters(), 0.1, scale=1.0)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_lr_schedulers(as_tensor: bool) -> None:
    scheduled, by_hand = make_parameters(), make_parameters()
    lr: Any = torch.tensor(0.1) if as_tensor else 0.1
    optimizer = MetaplasticSGD(scheduled, lr, scale=20.0, gate="step")
    judge = MetaplasticSGD(by_hand, 0.1, scale=20.0, gate="step")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for step in range(6):
        judge.param_groups[0]["lr"] = 0.1 * 0.5 ** (step // 2)
        for o, params in ((optimizer, scheduled), (judge, by_hand)):
            set_grads(params, step)
            o.step()
        scheduler.step()
    assert same_bits(scheduled, by_hand)


def test_one_cycle_drives_momentum() -> None:
    params = make_parameters()
    optimizer = MetaplasticSGD(params, 0.1, scale=20.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    start = optimizer.param_groups[0]["momentum"]
    for step in range(3):
        set_grads(params, step)
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["momentum"] < start


def test_closure_hooks_and_no_graph() -> None:
    params = make_parameters(shapes=[(3, 2)])
    optimizer = MetaplasticSGD(params, 0.1, scale=20.0)
    order: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: order.append("before"))
    optimizer.register_step_post_hook(lambda *_: order.append("after"))

    def closure() -> Tensor:
        order.append("closure")
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() > 0
    assert order == ["before", "closure", "after"]
    assert params[0].is_leaf
    assert params[0].requires_grad
    assert params[0].square().sum() < loss
    assert optimizer.step() is None


def test_stepping_a_weight_that_the_graph_still_needs_is_noticed() -> None:
    p = Parameter(torch.ones(2, 2))
    x = torch.ones(2, 2, requires_grad=True)
    out = (x @ p).sum()
    p.grad = torch.ones(2, 2)
    MetaplasticSGD([p], 0.1, scale=1.0).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_sparse_gradients_are_refused_before_anything_changes() -> None:
    params = make_parameters()
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = MetaplasticSGD(params, 0.1, scale=1.0)
    optimizer.add_param_group({"params": embedding.parameters()})
    embedding(torch.tensor([1, 2])).sum().backward()
    set_grads(params, 0)
    start = [p.detach().clone() for p in params]
    with pytest.raises(TypeError, match=r"parameter 0 of its group.*sparse=False"):
        optimizer.step()
    assert same_bits(params, start)


def test_gradients_of_another_dtype_are_refused_before_anything_changes() -> None:
    params = make_parameters()
    set_grads(params, 0)
    params[2].grad = None
    params[2].grad_dtype = torch.bfloat16
    params[2].grad = torch.ones(3, 4, 2, dtype=torch.bfloat16)
    start = [p.detach().clone() for p in params]
    optimizer = MetaplasticSGD(params, 0.1, scale=1.0)
    with pytest.raises(TypeError, match=r"parameter 2 of its group must be torch.float32.*got torch.bfloat16"):
        optimizer.step()
    assert same_bits(params, start)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_gradients(bad: float) -> None:
    finals = {}
    for mode in ("skip", "propagate", "raise"):
        params = make_parameters()
        start = [p.detach().clone() for p in params]
        optimizer = MetaplasticSGD(params[:1], 0.1, scale=20.0, momentum=0.9, nonfinite=mode)
        optimizer.add_param_group({"params": params[1:]})
        set_grads(params, 0)
        params[2].grad[0, 0, 0] = bad
        if mode == "raise":
            with pytest.raises(FloatingPointError, match="nothing was changed"):
                optimizer.step()
            assert same_bits(params, start)
        else:
            optimizer.step()
            assert torch.equal(params[2][0, 0, 0], start[2][0, 0, 0]) == (mode == "skip")
            assert torch.isfinite(params[2][0, 0, 0]) == (mode == "skip")
            assert torch.isfinite(params[2].flatten()[1:]).all()
        finals[mode] = params
    assert same_bits(finals["skip"][:2], finals["propagate"][:2])


BAD = {
    "lr": ({"lr": -1.0}, ValueError, "lr must be a finite number >= 0.*-1.0"),
    "lr tensor": ({"lr": torch.ones(2)}, ValueError, "lr as a tensor must have one"),
    "lr string": ({"lr": "fast"}, TypeError, "lr must be a finite number"),
    "scale 0": ({"scale": 0.0}, ValueError, "scale must be a finite number > 0"),
    "scale nan": ({"scale": float("nan")}, ValueError, "scale must be a finite number > 0"),
    "scale name": ({"scale": "big"}, ValueError, "scale must be a number > 0 or 'auto', got 'big'"),
    "momentum": ({"momentum": -0.1}, ValueError, "momentum must be"),
    "dampening": ({"dampening": float("inf")}, ValueError, "dampening must be"),
    "weight_decay": ({"weight_decay": -0.1}, ValueError, "weight_decay must be"),
    "nesterov": ({"nesterov": True}, ValueError, "nesterov needs momentum > 0"),
    "maximize": ({"maximize": 1}, TypeError, "maximize must be True or False"),
    "gate": ({"gate": "task"}, ValueError, "gate must be one of .*got 'task'"),
    "nonfinite": ({"nonfinite": "ignore"}, ValueError, "nonfinite must be one of"),
    "seed": ({"seed": -1}, ValueError, "seed must be in"),
    "flexibility name": ({"flexibility": "gaussian"}, ValueError, "flexibility must be one of.*'gaussian'"),
    "flexibility number": ({"flexibility": 1.5}, ValueError, r"flexibility\[0\] must be in \[0, 1\], got 1.5"),
    "flexibility tensor": ({"flexibility": torch.ones(6, 5)}, ValueError, "one tensor but its group has 3"),
    "flexibility shape": ({"flexibility": [torch.ones(5, 6), 1, 1]}, ValueError, r"flexibility\[0\] must have"),
    "flexibility dtype": ({"flexibility": [torch.ones(6, 5).half(), 1, 1]}, TypeError, "must be torch.float32"),
    "flexibility values": ({"flexibility": [torch.full((6, 5), 2.0), 1, 1]}, ValueError, "values in"),
    "flexibility nan": ({"flexibility": [torch.full((6, 5), torch.nan), 1, 1]}, ValueError, "values in"),
    "flexibility count": ({"flexibility": [0.5]}, ValueError, "1 entries but its group has 3"),
    "flexibility of a vector": ({"flexibility": [1, torch.ones(5), 1]}, ValueError, "flexible_vectors=True"),
    "flexibility normal": ({"flexibility": Field.normal(0)}, ValueError, r"values in \[0, 1\]"),
    "flexibility normal by table": ({"flexibility": Field.normal_table(0)}, ValueError, r"values in \[0, 1\]"),
    "flexibility range": ({"flexibility": Field.uniform(0, low=-1)}, ValueError, r"values in \[0, 1\]"),
    "flexibility none": ({"flexibility": None}, TypeError, r"flexibility\[0\] must be a number, a tensor"),
    "anchor tensor": ({"anchor": torch.ones(6, 5)}, TypeError, r"anchor\[0\] must be None"),
    "anchor count": ({"anchor": [None]}, ValueError, "anchor has 1 entries"),
    "integers": ({"params": [torch.ones(3, dtype=torch.int64)]}, TypeError, r"params\[0\] must be a dense"),
    "complex": ({"params": [torch.ones(3, dtype=torch.complex64)]}, TypeError, r"params\[0\] must be a dense"),
    "overlap": ({"params": [torch.ones(1, 3).expand(2, 3)]}, ValueError, r"params\[0\] is written"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"params": make_parameters(), "lr": 0.1, "scale": 1.0}
    with pytest.raises(error, match=message):
        MetaplasticSGD(**{**good, **options})
    optimizer = MetaplasticSGD(make_parameters(), 0.1, scale=1.0)
    before = repr(optimizer.state_dict())
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": make_parameters(seed=1), **options})
    assert repr(optimizer.state_dict()) == before
    assert len(optimizer.param_groups) == 1


def test_a_parameter_twice_steps_twice_as_in_torch() -> None:
    p, q = (Parameter(torch.ones(2, 2)) for _ in range(2))
    with pytest.warns(UserWarning, match="duplicate"):
        ours = MetaplasticSGD([p, p], 0.25, scale=1.0, flexibility=1.0)
    with pytest.warns(UserWarning, match="duplicate"):
        theirs = torch.optim.SGD([q, q], 0.25)
    for _ in range(3):
        p.grad, q.grad = torch.ones(2, 2), torch.ones(2, 2)
        ours.step()
        theirs.step()
    assert torch.equal(p, q)  # exact: all numbers are multiples of a quarter
    assert (p == 1 - 3 * 2 * 0.25).all()
