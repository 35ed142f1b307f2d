"""The optimizers refuse by name and before anything changes; what they keep survives copies and files."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from flexkern.optim import Metaplastic, MetaplasticAdamW, MetaplasticSGD
from helpers.optimizers import KINDS, MAKERS, make_parameters, same_bits, set_grads

SPARSE = torch.ones(1).to_sparse()
NESTED = torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)])
META = torch.zeros((), device="meta")
HISTORY = torch.ones(1, requires_grad=True) * 20.0


def state_of(optimizer: Any, params: list[Parameter]) -> list[Tensor]:
    found = [p.detach().clone() for p in params]
    for p in params:
        found += [v.clone() for _, v in sorted(optimizer.state.get(p, {}).items()) if isinstance(v, Tensor)]
    return found


def unchanged(
    optimizer: Any, params: list[Parameter], call: Callable[[], Any], error: Any, message: str
) -> None:
    before = state_of(optimizer, params)
    with pytest.raises(error, match=message):
        call()
    assert all(torch.equal(a, b) for a, b in zip(state_of(optimizer, params), before, strict=True))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("name", "value"), [
    ("scale", "0.1"), ("scale", NESTED), ("scale", META), ("scale", SPARSE), ("scale", 10**400), ("seed", -1),
    ("seed", 2**64), ("seed", 0.5), ("gate", np.array(["item", "step"])), ("gate", 5), ("nonfinite", ["skip"]),
    ("alpha_dtype", "bfloat16"), ("flexibility", NESTED), ("flexibility", "0.5"), ("flexibility", 10**400),
    ("flexible_vectors", 1), ("anchor", META), ("anchor", "field"),
])  # fmt: skip
def test_options(kind: str, name: str, value: Any) -> None:
    params = make_parameters()[:1]
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        MAKERS[kind](params, **{"lr": 0.1, "scale": 1.0, name: value})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["0.1", NESTED, META, SPARSE, None, True, 10**400])
def test_the_learning_rate(kind: str, value: Any) -> None:
    if value is None and kind == "AdamW":
        value = [0.1]
    with pytest.raises((TypeError, ValueError), match=r"^lr "):
        KINDS[kind](make_parameters(), value, scale=1.0)


@pytest.mark.parametrize(
    "betas", [0.9, (0.9,), "ab", {0.9: 1, 0.8: 2}, NESTED, np.array(0.9), (0.9, "0.9")], ids=str
)
def test_betas(betas: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^betas "):
        MetaplasticAdamW(make_parameters(), scale=1.0, betas=betas)


def test_betas_of_numpy_are_numbers() -> None:
    optimizer = MetaplasticAdamW(make_parameters(), scale=1.0, betas=np.array([0.5, 0.75]))  # type: ignore[arg-type]
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.75)


@pytest.mark.parametrize("params", [5, "params", None, {"params": []}])
def test_parameters(params: Any) -> None:
    with pytest.raises(TypeError, match="params must be parameters"):
        MetaplasticSGD(params, 0.1, scale=1.0)


@pytest.mark.parametrize("module", [torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2))])
def test_a_module_is_no_list_of_parameters(module: Any) -> None:
    with pytest.raises(TypeError, match=rf"got the module {type(module).__name__}: pass its parameters\(\)"):
        MetaplasticSGD(module, 0.1, scale=1.0)
    optimizer = MetaplasticSGD(make_parameters(), 0.1, scale=1.0)
    with pytest.raises(TypeError, match=r"pass its parameters\(\)"):
        optimizer.add_param_group({"params": module})


@pytest.mark.parametrize("group", [5, {"lr": 0.1}, {"params": 5}, {"params": "p"}])
@pytest.mark.parametrize("model", [None, torch.nn.Linear(2, 2)])
def test_groups(group: Any, model: Any) -> None:
    params = make_parameters() if model is None else model.parameters()
    optimizer = MetaplasticSGD(params, 0.1, scale=1.0, model=model)
    with pytest.raises(TypeError, match=r"^param"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("kind", MAKERS)
def test_a_closure_is_a_function(kind: str) -> None:
    params = make_parameters()
    optimizer = MAKERS[kind](params, lr=0.1, scale=1.0)
    unchanged(optimizer, params, lambda: optimizer.step(5), TypeError, "closure must be a function")


def test_schedulers_are_a_list() -> None:
    plain = torch.optim.SGD(make_parameters(), 0.1)
    with pytest.raises(TypeError, match="schedulers must be a list"):
        MetaplasticSGD.from_optimizer(plain, scale=1.0, schedulers=5)  # type: ignore[arg-type]


# ------------------------------------------------------------------ all or nothing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "value"), [
    ("lr", "0.1"), ("lr", -1.0), ("lr", SPARSE), ("weight_decay", "x"), ("scale", -1.0), ("nonfinite", "x"),
    ("gate", None), ("maximize", 2),
])  # fmt: skip
def test_the_setting_of_a_later_group_is_refused_before_the_first_one_steps(
    kind: str, name: str, value: Any
) -> None:
    params = make_parameters()
    optimizer = KINDS[kind]([{"params": params[:1]}, {"params": params[1:]}], lr=0.1, scale=20.0)
    for step in range(2):
        set_grads(params, step)
        optimizer.step()
    optimizer.param_groups[1][name] = value
    unchanged(optimizer, params, optimizer.step, (TypeError, ValueError), rf"\b{name}\b")


def test_a_step_that_is_refused_does_not_count() -> None:
    params = make_parameters()
    optimizer = MetaplasticAdamW(params, scale=20.0)
    set_grads(params, 0)
    optimizer.step()
    params[0].data = torch.ones(2, 2)
    params[0].grad = torch.ones(2, 2)
    unchanged(optimizer, params, optimizer.step, ValueError, "must have its shape")
    shared = torch.ones(10)
    params = [Parameter(shared[:6].view(2, 3)), Parameter(shared[3:9].view(2, 3))]
    optimizer = MetaplasticAdamW(params, scale=20.0)
    for p in params:
        p.grad = torch.ones(2, 3)
    with pytest.raises((RuntimeError, ValueError), match="shares memory"):
        optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [0.0, 0.0]


def begun(kind: str) -> tuple[Any, list[Parameter]]:
    params = make_parameters()
    optimizer = MAKERS[kind](params, lr=0.1, scale=20.0, **({} if kind == "AdamW" else {"momentum": 0.5}))
    for step in range(3):
        set_grads(params, step)
        optimizer.step()
    optimizer.consolidate()
    return optimizer, params


FOREIGN: dict[str, Callable[[Any], Any]] = {
    "no dictionary": lambda s: 5,
    "empty": lambda s: {},
    "no groups": lambda s: s | {"param_groups": None},
    "a group that is none": lambda s: s | {"param_groups": [5]},
    "no parameters": lambda s: s | {"param_groups": [{"params": None}]},
    "no lr": lambda s: s["param_groups"][0].pop("lr") and s,
    "state that is none": lambda s: s["state"].__setitem__(0, 5) or s,
    "a string for a tensor": lambda s: s["state"][0].__setitem__("anchor", "x") or s,
    "a number for a tensor": lambda s: s["state"][0].__setitem__("alpha", 0.5) or s,
    "nested": lambda s: s["state"][0].__setitem__("anchor", NESTED) or s,
    "sparse": lambda s: s["state"][0].__setitem__("anchor", SPARSE) or s,
    "without values": lambda s: s["state"][0].__setitem__("anchor", torch.zeros(6, 5, device="meta")) or s,
    "another shape": lambda s: s["state"][0].__setitem__("anchor", torch.zeros(5)) or s,
    "a flexibility over 1": lambda s: s["state"][0].__setitem__("flexibility", 2.0) or s,
    "no field": lambda s: s["state"][0].__setitem__("flexibility", {"kind": float("nan"), "purpose": 0}) or s,
    "items below 0": lambda s: s["state"][0].__setitem__("items", -5) or s,
    "a first item of words": lambda s: s["param_groups"][0].__setitem__("first_item", ("x",)) or s,
    "a first item of fractions": lambda s: s["param_groups"][0].__setitem__("first_item", (0.5,)) or s,
    "a measured scale that is none": lambda s: s["param_groups"][0].__setitem__("measured_scale", "x") or s,
    "a nested setting": lambda s: s["param_groups"][0].__setitem__("flexibility", NESTED) or s,
    "a nested anchor": lambda s: s["param_groups"][0].__setitem__("anchor", NESTED) or s,
    "nested in a list": lambda s: s["param_groups"][0].__setitem__("weight_decay", [0.1, NESTED]) or s,
    "a setting with a history": lambda s: s["param_groups"][0].__setitem__("scale", HISTORY) or s,
    "a setting that is no data": lambda s: s["param_groups"][0].__setitem__("gate", iter(()).__next__) or s,
    "what cannot be copied": lambda s: s["param_groups"][0].__setitem__("notes", (i for i in ())) or s,
    "alpha of no item": lambda s: s["state"][0].pop("alpha_item") and s,
    "an item without its alpha": lambda s: s["state"][0].pop("alpha") is not None and s,
    "lr a string": lambda s: s["param_groups"][0].__setitem__("scale", "x") or s,
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_state(kind: str, what: str) -> None:
    optimizer, params = begun(kind)
    foreign = FOREIGN[what](copy.deepcopy(optimizer.state_dict()))
    if kind == "wrapped" and what == "no lr":
        return  # torch's own
    unchanged(
        optimizer,
        params,
        lambda: optimizer.load_state_dict(foreign),
        (TypeError, ValueError),
        "state_dict|state dict",
    )
    set_grads(params, 3)
    optimizer.step()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["flexibility", "anchor", "gate", "seed", "scale", "unknown"])
def test_what_cannot_be_copied_is_named(kind: str, name: str) -> None:
    optimizer, params = begun(kind)
    for value in (NESTED, (NESTED, 1.0), {"a": NESTED}, HISTORY, (i for i in ())):
        foreign = copy.deepcopy(optimizer.state_dict())
        foreign["param_groups"][0][name] = value
        unchanged(
            optimizer,
            params,
            lambda of=foreign: optimizer.load_state_dict(of),
            ValueError,
            rf"state_dict: {name}",
        )


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("gate", ["item", "step"])
@pytest.mark.parametrize("how", ["set", "loaded"])
def test_a_scale_is_not_measured_in_a_later_item(kind: str, gate: str, how: str) -> None:
    params = make_parameters()
    optimizer = MAKERS[kind](params, lr=0.1, scale=20.0 if how == "set" else "auto", gate=gate)
    set_grads(params, 0)
    optimizer.step()
    if how == "set":
        optimizer.consolidate()
        optimizer.param_groups[0]["scale"] = "auto"
    else:
        state = optimizer.state_dict()
        state["state"][0]["items"] = 2**64
        optimizer.load_state_dict(state)
    set_grads(params, 1)
    unchanged(optimizer, params, optimizer.step, ValueError, r"scale='auto'.*items.*consolidate\(\)")
    optimizer.consolidate()
    optimizer.step()


def test_what_the_wrapped_optimizer_does_not_take_changes_nothing() -> None:
    optimizer, params = begun("wrapped")
    foreign = copy.deepcopy(optimizer.state_dict())
    foreign["state"][0]["momentum_buffer"] = torch.quantize_per_tensor(torch.zeros(6, 5), 0.1, 0, torch.qint8)
    foreign["state"][0]["anchor"] = torch.zeros(6, 5)
    unchanged(optimizer, params, lambda: optimizer.load_state_dict(foreign), ValueError, "state_dict")


# ------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("kind", MAKERS)
def test_a_pickle_in_the_middle_of_an_item_keeps_its_alpha(kind: str) -> None:
    """Settings that come out of a pickle are other objects that say the same; they are no change."""
    start = make_parameters()[:1]

    def life(middle: Callable[[Any], Any]) -> list[Parameter]:
        params = copy.deepcopy(start)
        flexibility = torch.rand(6, 5, generator=torch.Generator().manual_seed(1))
        both: Any = params, MAKERS[kind](params, lr=0.1, scale=20.0, seed=10**9, flexibility=[flexibility])
        for step in range(6):
            set_grads(both[0], step)
            both[1].step()
            if step == 1:
                both[1].consolidate()
            if step == 3:
                both = middle(both)
        return both[0]

    expected = life(lambda both: both)
    assert same_bits(life(copy.deepcopy), expected)
    assert same_bits(life(lambda both: pickle.loads(pickle.dumps(both))), expected)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_was_given_for_one_parameter_survives_files_before_the_first_step(kind: str) -> None:
    flexibility = torch.rand(6, 5)
    first = MAKERS[kind](make_parameters()[:1], lr=0.1, scale=20.0, flexibility=[flexibility])
    state = first.state_dict()
    for _ in range(2):
        again = MAKERS[kind](make_parameters()[:1], lr=0.1, scale=20.0)
        again.load_state_dict(copy.deepcopy(state))
        state = again.state_dict()
        assert torch.equal(state["state"][0]["flexibility"], flexibility)


def test_what_was_given_survives_a_file_after_a_plain_optimizer_was_taken_over() -> None:
    params, flexibility = make_parameters()[:1], torch.rand(6, 5)
    plain = torch.optim.SGD(params, 0.1, momentum=0.5)
    set_grads(params, 0)
    plain.step()
    taken = MetaplasticSGD.from_optimizer(plain, scale=20.0, flexibility=[flexibility])
    assert torch.equal(taken.state_dict()["state"][0]["flexibility"], flexibility)
    assert isinstance(Metaplastic(plain, scale=20.0), Metaplastic)
