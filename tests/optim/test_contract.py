"""What every optimizer does with its groups and parameters, whatever their gradients, shapes and strides."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from flexkern import Field
from helpers.optimizers import (
    ANCHORS,
    CASES,
    KINDS,
    MAKERS,
    Case,
    ids,
    make_parameters,
    same_bits,
    set_grads,
    train,
)

all_cases = pytest.mark.parametrize("case", CASES.values(), ids=ids)
kinds = pytest.mark.parametrize("kind", MAKERS)


@all_cases
def test_groups_have_their_own_lr_and_decay(case: Case) -> None:
    """One optimizer of two groups is two optimizers."""
    grouped, alone = case.parameters(), case.parameters()
    own: list[dict[str, Any]] = [{"lr": 0.05, "weight_decay": 0.0}, {"lr": 0.02, "weight_decay": 0.2}]
    parts = [slice(0, 2), slice(2, 3)]
    anchors = [{"anchor": case.options["anchor"][s]} if "anchor" in case.options else {} for s in parts]
    groups = [{"params": grouped[s], **o, **a} for s, o, a in zip(parts, own, anchors, strict=True)]
    optimizer = case.make(groups)
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.02]
    # Streams go on from group to group, and names are of the whole network.
    names = [(f"layer{i}", p) if case.named else p for i, p in enumerate(alone)]
    fields = Field.uniform(7), [Field.uniform(7, 2)]
    singles = [
        Case(case.kind, case.options, case.dtype).make(
            names[s], **o, **a, **({} if case.named else {"flexibility": f})
        )
        for s, o, a, f in zip(parts, own, anchors, fields, strict=True)
    ]
    for step in range(9):
        for params in (grouped, alone):
            set_grads(params, step)
        for each in (optimizer, *singles):
            each.step()
            if step % 4 == 3:
                each.consolidate()
    assert same_bits(grouped, alone)


@all_cases
def test_empty_group_and_parameters_without_gradient(case: Case) -> None:
    params, judge = case.parameters(), case.parameters()
    optimizer = case.make(params)
    if not case.named:  # torch refuses a group without names beside one with names
        optimizer.add_param_group({"params": [], "anchor": None})
    train(optimizer, params, 0, 6)
    train(case.make(judge), judge, 0, 6)
    assert same_bits(params, judge)

    bystander = Parameter(torch.ones(3, 3, dtype=case.dtype))
    added = [("bystander", bystander)] if case.named else bystander
    optimizer.add_param_group({"params": added, "anchor": None})
    optimizer.step()
    optimizer.consolidate()
    assert (bystander == 1).all()
    assert bystander not in optimizer.state or not optimizer.state[bystander]
    # The same of one that has stepped before.
    set_grads(params, 7)
    params[0].grad = None
    before = params[0].detach().clone(), copy.deepcopy(dict(optimizer.state[params[0]]))
    optimizer.step()
    assert torch.equal(params[0], before[0])
    assert repr(dict(optimizer.state[params[0]])) == repr(before[1])


@kinds
def test_no_parameters_at_all(kind: str) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        MAKERS[kind]([], lr=0.1, scale=1.0)


@all_cases
def test_layout_of_parameters_and_gradients(case: Case) -> None:
    """Bits do not depend on strides, neither of the parameters nor of the gradients."""
    params, strided = case.parameters(), case.parameters()
    strided[0] = Parameter(strided[0].detach().t().contiguous().t())
    strided[2] = Parameter(strided[2].detach().permute(2, 0, 1).contiguous().permute(1, 2, 0))
    assert not strided[0].is_contiguous()
    assert not strided[2].is_contiguous()
    optimizers = case.make(params), case.make(strided)
    for step in range(9):
        set_grads(params, step)
        for i, (p, q) in enumerate(zip(params, strided, strict=True)):
            wide = torch.stack([p.grad, p.grad], dim=-1)
            q.grad = (wide[..., 0], wide[..., 1], p.grad.clone())[(step + i) % 3]
        for optimizer in optimizers:
            optimizer.step()
            if step % 4 == 3:
                optimizer.consolidate()
    assert same_bits(params, strided)


@all_cases
def test_zero_size_and_0_dim(case: Case) -> None:
    params = [*case.parameters(), Parameter(torch.zeros(0, 3).to(case.dtype))]
    params += [Parameter(torch.tensor(0.5).to(case.dtype)), Parameter(torch.zeros(0).to(case.dtype))]
    judge = case.parameters()
    more = {"anchor": [*ANCHORS, None, None, None]} if "anchor" in case.options else {}
    optimizer = case.make(params, **more)
    train(optimizer, params, 0, 9)
    assert params[4] != 0.5
    assert torch.isfinite(params[4])
    train(case.make(judge), judge, 0, 9)
    # "auto" is measured from the last flexible weight that has elements.
    assert same_bits(params[:3], judge)


@kinds
@pytest.mark.parametrize("gate", ["item", "step"])
def test_flexible_0_dim(kind: str, gate: str) -> None:
    single, row = Parameter(torch.tensor(0.5)), Parameter(torch.tensor([0.5]))
    for p in (single, row):
        options = {"flexibility": 0.4, "gate": gate, "flexible_vectors": True}
        optimizer = MAKERS[kind]([p], lr=0.1, scale=20.0, **options)
        for step in range(9):
            p.grad = torch.full_like(p, 0.1 * step - 0.3)
            optimizer.step()
            if step % 4 == 3:
                optimizer.consolidate()
    assert torch.equal(single, row[0])
    assert single != 0.5


@kinds
def test_complex_parameters_are_refused(kind: str) -> None:
    with pytest.raises(TypeError, match=r"params\[1\] must be a dense .* got torch.complex64"):
        MAKERS[kind]([torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.complex64)], lr=0.1, scale=1.0)


@all_cases
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_lr_and_scale_as_tensors(case: Case, shape: tuple[int, ...]) -> None:
    params, judge = case.parameters(), case.parameters()
    lr, scale = torch.full(shape, 0.05), torch.full(shape, 20.0)
    train(case.make(params, lr=lr, scale=scale), params, 0, 9)
    train(case.make(judge, lr=lr.item(), scale=20.0), judge, 0, 9)
    assert same_bits(params, judge)
    assert lr == torch.full(shape, 0.05)


@all_cases
def test_closure(case: Case) -> None:
    params, judge = case.parameters(), case.parameters()
    optimizer, plain = case.make(params), case.make(judge)
    asked = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = sum((p.float() ** 2).sum() for p in params)
        loss.backward()
        asked.append(loss.item())
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses == asked
    for _ in range(5):
        plain.zero_grad()
        sum((p.float() ** 2).sum() for p in judge).backward()
        assert plain.step() is None
    assert same_bits(params, judge)
    downhill = not case.options.get("maximize")
    assert (losses[-1] < losses[0]) == downhill


@all_cases
@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad(case: Case, to_none: bool) -> None:
    params = case.parameters()
    optimizer = case.make(params)
    train(optimizer, params, 0, 2)
    grads = [p.grad for p in params]
    optimizer.zero_grad(set_to_none=to_none)
    for p, grad in zip(params, grads, strict=True):
        if to_none:
            assert p.grad is None
        else:
            assert p.grad is grad
            assert not grad.any()
    optimizer.step()  # with no gradient nothing happens, with zeros it is a step
    assert all(torch.isfinite(p).all() for p in params)


@all_cases
def test_a_group_that_is_added_later(case: Case) -> None:
    """A parameter that joins later has the flexibility that it would have had from the start."""
    params = case.parameters()
    optimizer = case.make(params[:2], anchor=None)
    train(optimizer, params[:2], 0, 6)
    before = [p.detach().clone() for p in params]
    late: Any = ("layer2", params[2]) if case.named else params[2]
    optimizer.add_param_group({"params": [late], "lr": 0.01})
    assert optimizer.param_groups[1]["lr"] == 0.01
    assert optimizer.param_groups[1]["gate"] == optimizer.param_groups[0]["gate"]
    for step in range(6, 9):
        set_grads(params, step)
        optimizer.step()
    assert optimizer.state[params[2]]["flexibility"] == case_flexibility(case, 2)
    assert all((p != b).any() for p, b in zip(params, before, strict=True))
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group({"params": [("again", params[0]) if case.named else params[0]]})


def case_flexibility(case: Case, i: int) -> Any:
    """As state has it of parameter i, were it there from the start."""
    params = case.parameters()
    optimizer = case.make(params)
    train(optimizer, params, 0, 1)
    return optimizer.state[params[i]]["flexibility"]


@all_cases
def test_parameters_are_put_into_the_list_and_taken_out_by_hand(case: Case) -> None:
    if "anchor" in case.options:
        pytest.skip("an anchor for each parameter asks for add_param_group")
    params, judge = case.parameters(), case.parameters()
    optimizer, plain = case.make(params), case.make(judge)
    train(optimizer, params, 0, 6)
    train(plain, judge, 0, 6)
    listed = optimizer.param_groups[0]["params"]
    assert listed.pop(0) is params[0]
    rest = optimizer.state[params[2]]
    late = Parameter(torch.full((4, 4), 0.25).to(case.dtype))
    listed.append(late)
    for step in range(6, 14):
        set_grads(params, step)
        set_grads(judge, step)
        late.grad = torch.ones_like(late)
        judge[0].grad = None
        for each in (optimizer, plain):
            each.step()
            if step % 4 == 3:
                each.consolidate()
    assert same_bits(params[1:], judge[1:])
    assert optimizer.state[params[2]] is rest
    assert (late != 0.25).any()
    fs = [optimizer.state[p]["flexibility"] for p in (*params, late)]
    assert len({f["stream"] for f in (fs[0], fs[2], fs[3])}) == 3
    del optimizer.state[params[0]]  # torch does not save state of a parameter that is in no group
    resumed = [Parameter(p.detach().clone()) for p in listed]
    other = case.make(resumed)
    other.load_state_dict(optimizer.state_dict())
    train(optimizer, listed, 14, 18)
    train(other, resumed, 14, 18)
    assert same_bits(listed, resumed)


@all_cases
def test_a_parameter_twice_steps_twice(case: Case) -> None:
    if case.kind == "wrapped":
        pytest.skip("both steps are the optimizer's own, and are scaled as one")
    twice, once = (Parameter(0.3 * torch.ones(4, 4, dtype=case.dtype)) for _ in range(2))
    more = {"anchor": None, "flexibility": 0.5, "gate": "step", "scale": 20.0}
    make = Case(case.kind, case.options, case.dtype).make
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = make([twice, twice], **more)
    plain = make([once], **more)
    for step in range(5):
        set_grads([twice], step)
        optimizer.step()
        once.grad = twice.grad
        plain.step()
        plain.step()
    assert torch.equal(twice, once)


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_of_torchs_own_kernels(kind: str) -> None:
    make = MAKERS[kind]
    results = []
    for options in ({}, {"foreach": True}, {"fused": True}, {"foreach": False, "fused": False}):
        params = make_parameters()
        train(make(params, lr=0.05, scale=20.0, **options), params, 0, 6)
        results.append(params)
    assert all(same_bits(results[0], other) for other in results[1:])
    with pytest.raises(ValueError, match="differentiable must be False"):
        make(make_parameters(), lr=0.05, scale=20.0, differentiable=True)
    if kind == "AdamW":
        for capturable in (False, True):
            params = make_parameters()
            train(make(params, lr=0.05, scale=20.0, capturable=capturable), params, 0, 6)
            assert same_bits(params, results[0])


@all_cases
def test_no_warnings_in_ordinary_training(case: Case) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    params = list(model.to(case.dtype).parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = case.make(params, anchor=None)
        train(optimizer, params, 0, 9)
        optimizer.load_state_dict(optimizer.state_dict())
        repr(optimizer)
