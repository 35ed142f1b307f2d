"""What MetaplasticSGD keeps: checkpoints that resume to the bit, and the scale that it measures."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from flexkern import Field, ops
from flexkern.optim import MetaplasticSGD
from flexkern.optim.scale import AUTO_SCALE_C, AUTO_SCALE_FLOOR, FirstItem, auto_scale

SHAPES = ((6, 5), (5,), (3, 4, 2))
ANCHORS = [Field.normal(2, i, std=0.3) for i in range(3)]


def make_parameters(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(ops.materialize(f, s).to(dtype)) for f, s in zip(ANCHORS, SHAPES, strict=True)]


def train(optimizer: MetaplasticSGD, params: list[Parameter], first: int, last: int, item: int = 4) -> None:
    """Steps ``first`` to ``last`` of a stream, with gradients that depend on the step only."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
        if step % item == item - 1:
            optimizer.consolidate()


def same_bits(left: list[Parameter], right: list[Parameter]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


CASES: dict[str, dict[str, Any]] = {
    "item": {"scale": 20.0},
    "step, momentum": {"scale": 20.0, "gate": "step", "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01},
    "item, momentum, auto": {"scale": "auto", "momentum": 0.9, "nesterov": True},
    "step, auto, procedural anchor": {"scale": "auto", "gate": "step", "anchor": ANCHORS},
    "tensors": {
        "scale": torch.tensor(20.0),
        "lr": torch.tensor(0.05),
        "flexibility": [torch.rand(6, 5), 0.5, 1],
    },
    "biased": {"scale": 20.0, "flexibility": "biased_low", "flexible_vectors": True, "seed": 2**64 - 1},
}


@pytest.mark.parametrize("stop", [0, 2, 4, 6, 9], ids=lambda n: f"after {n} steps")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_resume_to_the_bit(options: dict[str, Any], dtype: torch.dtype, stop: int) -> None:
    options = {"lr": 0.05, "seed": 7, **options}
    whole = make_parameters(dtype)
    train(MetaplasticSGD(whole, **options), whole, 0, 13)

    half = make_parameters(dtype)
    optimizer = MetaplasticSGD(half, **options)
    train(optimizer, half, 0, stop)
    saved_weights = through_file([p.detach() for p in half])
    saved_state = through_file(optimizer.state_dict())
    train(optimizer, half, stop, 13)  # going on does not change what was saved
    assert same_bits(half, whole)

    resumed = [Parameter(w) for w in saved_weights]
    # Fields, settings and the measured scale come from the checkpoint, not from this line.
    fresh = MetaplasticSGD(resumed, 0.9, scale=3.0)
    fresh.load_state_dict(saved_state)
    train(fresh, resumed, stop, 13)
    assert same_bits(resumed, whole)


@pytest.mark.parametrize("by", ["pickle", "deepcopy"])
def test_pickle_and_deepcopy_of_the_optimizer(by: str) -> None:
    params = make_parameters(torch.bfloat16)
    optimizer = MetaplasticSGD(params, 0.05, scale="auto", momentum=0.9, anchor=ANCHORS, seed=3)
    train(optimizer, params, 0, 6)
    other = copy.deepcopy(optimizer) if by == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    others = other.param_groups[0]["params"]
    assert others[0] is not params[0]
    train(optimizer, params, 6, 10)
    train(other, others, 6, 10)
    assert same_bits(params, others)


def test_state_of_low_precision_parameters_stays_float32() -> None:
    params = make_parameters(torch.bfloat16)
    optimizer = MetaplasticSGD(params, 1e-3, scale=20.0, momentum=0.9)
    train(optimizer, params, 0, 5)
    fresh = MetaplasticSGD(make_parameters(torch.bfloat16), 1e-3, scale=20.0)
    fresh.load_state_dict(optimizer.state_dict())
    for p, q in zip(params, fresh.param_groups[0]["params"], strict=True):
        names = {"master", "momentum_buffer"} | ({"anchor", "alpha"} if p.dim() > 1 else set())
        others = {"items", "flexibility"} | ({"alpha_item"} if p.dim() > 1 else set())
        assert set(optimizer.state[p]) == set(fresh.state[q]) == names | others
        for name in names:
            assert fresh.state[q][name].dtype is torch.float32
            assert torch.equal(fresh.state[q][name], optimizer.state[p][name])
        # The test is worth something: these would not survive a trip through bfloat16.
        assert not torch.equal(optimizer.state[p]["master"].bfloat16().float(), optimizer.state[p]["master"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "master"])
def test_loaded_state_is_not_shared(dtype: torch.dtype) -> None:
    params = make_parameters(dtype)
    optimizer = MetaplasticSGD(params, 0.05, scale=20.0, momentum=0.9)
    train(optimizer, params, 0, 2)
    state = optimizer.state_dict()
    before = copy.deepcopy(state["state"])
    others = make_parameters(dtype)
    fresh = MetaplasticSGD(others, 0.05, scale=20.0)
    fresh.load_state_dict(state)
    train(fresh, others, 2, 6)
    for i, saved in before.items():
        tensors = {k: v for k, v in saved.items() if isinstance(v, torch.Tensor)}
        assert all(torch.equal(v, state["state"][i][k]) for k, v in tensors.items())


def test_procedural_state_costs_bytes_not_tensors() -> None:
    def size(side: int) -> int:
        anchor = [Field.normal(0, i, std=0.1) for i in range(4)]
        params = [Parameter(ops.materialize(f, (side, side))) for f in anchor]
        optimizer = MetaplasticSGD(params, 0.01, scale=20.0, gate="step", anchor=anchor)
        train(optimizer, params, 0, 5)
        assert not any(torch.is_tensor(v) for state in optimizer.state.values() for v in state.values())
        return len(pickle.dumps(optimizer.state_dict()))

    small, large = size(8), size(128)
    assert large == small
    assert large < 4 * 400  # four parameters of 64 KiB, two fields each


def test_hooks_see_plain_state() -> None:
    params = make_parameters(torch.bfloat16)
    optimizer = MetaplasticSGD(params, 0.05, scale=20.0, momentum=0.9)
    train(optimizer, params, 0, 2)
    seen: list[Any] = []
    fresh = MetaplasticSGD(make_parameters(torch.bfloat16), 0.05, scale=20.0)
    fresh.register_load_state_dict_pre_hook(lambda _, saved: seen.append(len(saved["state"])))
    fresh.register_load_state_dict_post_hook(
        lambda o: seen.append(o.state[o.param_groups[0]["params"][0]]["master"].dtype)
    )
    fresh.load_state_dict(optimizer.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    assert seen == [3, torch.float32] * 2


def test_checkpoint_without_a_scheduler_loads_into_an_optimizer_with_one() -> None:
    params = make_parameters()
    optimizer = MetaplasticSGD(params, 0.05, scale=20.0, momentum=0.9)
    saved = optimizer.state_dict()
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.05
    optimizer.add_param_group({"params": [Parameter(torch.ones(2, 2))]})
    assert len(optimizer.state_dict()["param_groups"]) == 2


def test_state_that_does_not_fit_is_refused() -> None:
    params = make_parameters()
    optimizer = MetaplasticSGD(params, 0.05, scale=20.0)
    train(optimizer, params, 0, 2)
    before = copy.deepcopy(optimizer.state_dict())

    sgd = torch.optim.SGD(make_parameters(), 0.1)
    with pytest.raises(ValueError, match=r"not one of a metaplastic optimizer.*scale"):
        optimizer.load_state_dict(sgd.state_dict())

    other = [Parameter(torch.zeros(5, 6)), Parameter(torch.zeros(5)), Parameter(torch.zeros(3, 4, 2))]
    wrong = MetaplasticSGD(other, 0.05, scale=1.0)
    train(wrong, other, 0, 2)
    with pytest.raises(ValueError, match=r"anchor has shape \(5, 6\) but its parameter has \(6, 5\)"):
        optimizer.load_state_dict(wrong.state_dict())

    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(MetaplasticSGD(other[:2], 0.05, scale=1.0).state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert torch.equal(after["state"][0]["anchor"], before["state"][0]["anchor"])


# --------------------------------------------------------------------------- scale="auto"


def test_auto_scale_rule() -> None:
    # Sum of learning rates 2, at a speed of 1 as far as 2.0; the weights came 0.5 far: r = 4.
    assert auto_scale(FirstItem(8, effort=2.0, speed=1.0), 0.5) == AUTO_SCALE_C * (4 - 1) / 0.5
    # Straight ahead, r = 1: the floor keeps the scale positive. The last displacement counts as a look.
    assert auto_scale(FirstItem(8, effort=2.0, speed=0.1), 0.5) == AUTO_SCALE_C * AUTO_SCALE_FLOOR / 0.5
    assert auto_scale(FirstItem(), 0.0) == float("inf")


@pytest.mark.parametrize(
    "rule",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.9, "nesterov": True}],
    ids=str,
)
def test_effort_is_how_far_a_constant_gradient_pulls(rule: dict[str, Any]) -> None:
    weight = Parameter(torch.zeros(1, 1, dtype=torch.float64))
    sgd = torch.optim.SGD([weight], 0.1, **rule)
    schedule = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.8)
    watched, given = FirstItem(), {"momentum": 0.0, "dampening": 0.0, "nesterov": False} | rule
    for _ in range(12):
        watched = watched.step(sgd.param_groups[0]["lr"], **given)
        weight.grad = -torch.ones_like(weight)
        sgd.step()
        schedule.step()
        # 12 steps of a few float64 roundings each, of values that add up.
        assert watched.effort == pytest.approx(weight.item(), rel=12 * 4 * 2.0**-53)


def first_item(moved: dict[int, float], lr: float, momentum: float) -> FirstItem:
    """What the optimizer should keep of an item after whose step n the weights had come ``moved[n]`` far."""
    watched = FirstItem()
    for step in range(1, len(moved) + 1):
        watched = watched.step(lr, momentum, 0.0, False)
        if step in (1, 2, 4, 8):
            watched = watched.look(moved[step])
    return watched


def displacement(weight: torch.Tensor, start: torch.Tensor) -> float:
    return (weight.detach() - start).abs().mean().item()


@pytest.mark.parametrize("gate", ["item", "step"])
@pytest.mark.parametrize("procedural", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_auto_learns_the_first_item_freely_then_measures(
    dtype: torch.dtype, procedural: bool, gate: str
) -> None:
    params, free = make_parameters(dtype), make_parameters(dtype)
    start = [ops.materialize(f, s) for f, s in zip(ANCHORS, SHAPES, strict=True)]
    if not procedural:
        start = [w.to(dtype).float() for w in start]
    anchor = ANCHORS if procedural else None
    optimizer = MetaplasticSGD(params, 0.05, scale="auto", gate=gate, momentum=0.5, anchor=anchor)
    conventional = MetaplasticSGD(free, 0.05, scale=1.0, flexibility=1, momentum=0.5)
    assert optimizer.scales() == [None]
    moved = {}
    for step in range(6):
        train(optimizer, params, step, step + 1, item=99)
        train(conventional, free, step, step + 1, item=99)
        moved[step + 1] = displacement(optimizer.state[params[2]].get("master", params[2]), start[2])
    assert optimizer.scales() == [None]
    if dtype is torch.float32 or not procedural:  # else the masters begin within half a bfloat16 ulp
        assert same_bits(params, free)
    expected = auto_scale(first_item(moved, 0.05, 0.5), moved[6])
    optimizer.consolidate()
    assert optimizer.scales() == [expected]
    optimizer.consolidate()
    assert optimizer.scales() == [expected]

    # From here on it is the optimizer that was given this number from the start.
    given = [Parameter(w.to(dtype)) for w in start]
    judge = MetaplasticSGD(given, 0.05, scale=expected, gate="item", momentum=0.5, anchor=anchor)
    train(judge, given, 0, 6, item=99)
    judge.consolidate()
    judge.param_groups[0]["gate"] = gate
    train(optimizer, params, 6, 12)
    train(judge, given, 6, 12)
    assert same_bits(params, given)


def test_auto_needs_a_first_item() -> None:
    params = make_parameters()
    optimizer = MetaplasticSGD(params, 0.05, scale="auto")
    with pytest.raises(RuntimeError, match=r"scale='auto' is measured over the first item.*no flexible weight"):
        optimizer.consolidate()
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"cannot be measured, it came out as inf.*not moved"):
        optimizer.consolidate()
    assert optimizer.state[params[0]]["items"] == 1
    train(optimizer, params, 0, 1)
    optimizer.consolidate()
    assert optimizer.scales()[0] > 0


def test_auto_scale_is_one_for_each_group_when_its_first_item_ends() -> None:
    params = make_parameters()
    optimizer = MetaplasticSGD([{"params": params[:2]}, {"params": params[2:]}], 0.05, scale="auto")
    train(optimizer, params[:2], 0, 4)
    first, second = optimizer.scales()
    assert first > 0
    assert second is None  # no gradient yet
    start = params[2].detach().clone()
    moved = {}
    for step in range(4, 8):
        train(optimizer, params, step, step + 1, item=99)
        moved[step - 3] = displacement(params[2], start)
    optimizer.consolidate()
    assert optimizer.scales() == [first, auto_scale(first_item(moved, 0.05, 0.0), moved[4])]


def test_auto_scale_has_no_say_where_nothing_is_flexible() -> None:
    params = make_parameters()
    optimizer = MetaplasticSGD(params, 0.05, scale="auto", flexibility=1.0)
    optimizer.consolidate()
    train(optimizer, params, 0, 8)
    assert optimizer.scales() == [None]


def test_auto_scale_waits_for_a_weight_with_elements() -> None:
    params = [Parameter(torch.zeros(0, 3)), Parameter(torch.zeros(3))]
    optimizer = MetaplasticSGD(params, 0.05, scale="auto")
    train(optimizer, params, 0, 8)
    assert optimizer.scales() == [None]


def test_scale_as_a_tensor() -> None:
    as_tensor, as_number = make_parameters(), make_parameters()
    train(MetaplasticSGD(as_tensor, 0.05, scale=torch.tensor([20.0], dtype=torch.float64)), as_tensor, 0, 8)
    train(MetaplasticSGD(as_number, 0.05, scale=20.0), as_number, 0, 8)
    assert same_bits(as_tensor, as_number)
