"""What every optimizer does with its state: saved and read back in every way, it goes on to the bit."""

from __future__ import annotations

import copy
import io
import pickle
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from helpers.optimizers import CASES, Case, ids, same_bits, through_file, train

STOP, LAST = 6, 13  # in the second item; in the fourth
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=ids)


def uninterrupted(case: Case) -> list[Parameter]:
    params = case.parameters()
    train(case.make(params), params, 0, LAST)
    return params


def halfway(case: Case, stop: int = STOP) -> tuple[Any, list[Parameter]]:
    params = case.parameters()
    optimizer = case.make(params)
    train(optimizer, params, 0, stop)
    return optimizer, params


def copied(params: list[Parameter]) -> list[Parameter]:
    return [Parameter(p.detach().clone()) for p in params]


WAYS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "as it is": lambda state: state,
    "deepcopy": copy.deepcopy,
    "file": through_file,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
}


@pytest.mark.parametrize("stop", [0, 3, 4, 6])
@pytest.mark.parametrize("way", WAYS)
@all_cases
def test_state_dict_goes_on_to_the_bit(case: Case, way: str, stop: int) -> None:
    optimizer, params = halfway(case, stop)
    state = WAYS[way](optimizer.state_dict())
    resumed = copied(params)
    fresh = case.make(resumed)
    fresh.load_state_dict(state)
    train(fresh, resumed, stop, LAST)
    train(optimizer, params, stop, LAST)  # neither moves the other
    assert same_bits(resumed, uninterrupted(case))
    assert same_bits(params, resumed)


@all_cases
def test_into_an_optimizer_of_other_options(case: Case) -> None:
    optimizer, params = halfway(case)
    resumed = copied(params)
    other = {"lr": 1.0, "scale": 3.0, "seed": 1, "gate": "item", "maximize": False, "flexibility": 0.5}
    fresh = Case(case.kind, other, case.dtype).make(resumed)
    fresh.load_state_dict(through_file(optimizer.state_dict()))
    train(fresh, resumed, STOP, LAST)
    assert same_bits(resumed, uninterrupted(case))


@all_cases
def test_into_an_optimizer_that_has_trained_itself(case: Case) -> None:
    optimizer, params = halfway(case)
    other, others = halfway(case, 9)
    with torch.no_grad():
        for p, q in zip(others, params, strict=True):
            p.copy_(q)
    other.load_state_dict(optimizer.state_dict())
    train(other, others, STOP, LAST)
    assert same_bits(others, uninterrupted(case))


def by_torch_save(optimizer: Any) -> Any:
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "way",
    [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), by_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("stop", [0, 3, 4, 6])
@all_cases
def test_copies_of_the_optimizer(case: Case, stop: int, way: Callable[[Any], Any]) -> None:
    optimizer, params = halfway(case, stop)
    other = way(optimizer)
    others = other.param_groups[0]["params"]
    assert not {id(p) for p in others} & {id(p) for p in params}
    train(other, others, stop, LAST)
    train(optimizer, params, stop, LAST)
    assert same_bits(others, uninterrupted(case))
    assert same_bits(params, others)


@all_cases
def test_a_deepcopied_state_dict_is_independent(case: Case) -> None:
    optimizer, params = halfway(case)
    kept = copy.deepcopy(optimizer.state_dict())
    before = repr(kept)
    train(optimizer, params, STOP, LAST)
    assert repr(kept) == before
    assert repr(optimizer.state_dict()) != before


@all_cases
def test_the_state_has_plain_data_only(case: Case) -> None:
    optimizer, _ = halfway(case)
    state = optimizer.state_dict()
    again = through_file(state)  # weights_only
    assert repr(again) == repr(state)
    assert set(state) == {"state", "param_groups"}
    assert state["param_groups"][0]["params"] == [0, 1, 2]
    allowed = (int, float, str, bool, torch.Tensor, type(None))
    for of_one in state["state"].values():
        for value in of_one.values():
            assert isinstance(value, allowed) or all(type(v) in (int, float) for v in value.values())


@all_cases
def test_state_keys_never_come_and_go(case: Case) -> None:
    params = case.parameters()
    optimizer = case.make(params)
    kinds = []
    for step in range(9):
        train(optimizer, params, step, step + 1)
        kinds.append([{k: type(v) for k, v in optimizer.state[p].items()} for p in params])
    assert all(of_step == kinds[0] for of_step in kinds)


@all_cases
def test_hooks_of_every_kind(case: Case) -> None:
    optimizer, params = halfway(case)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before step"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after step"))
    optimizer.register_state_dict_pre_hook(lambda *_: seen.append("before state_dict"))

    def after_state_dict(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append("after state_dict")
        return {**state, "note": "kept"}

    optimizer.register_state_dict_post_hook(after_state_dict)
    state = optimizer.state_dict()
    assert state["note"] == "kept"

    resumed = copied(params)
    fresh = case.make(resumed)

    def before_load(_: Any, saved: dict[str, Any]) -> dict[str, Any]:
        assert saved["note"] == "kept"
        assert saved["state"]
        seen.append("before load")
        return {**saved, "param_groups": [{**g, "lr": 0.5} for g in saved["param_groups"]]}

    def after_load(loaded: Any) -> None:
        assert loaded.state[resumed[0]]["items"] == 2
        seen.append("after load")

    fresh.register_load_state_dict_pre_hook(before_load)
    fresh.register_load_state_dict_post_hook(after_load)
    fresh.load_state_dict(state)
    assert fresh.param_groups[0]["lr"] == 0.5
    assert state["param_groups"][0]["lr"] != 0.5
    train(optimizer, params, STOP, STOP + 1)
    assert seen == [
        "before state_dict", "after state_dict", "before load", "after load", "before step", "after step",
    ]  # fmt: skip


# What a state saved by an earlier version may lack; what the values are when it does.
REMOVED = {
    "SGD": ["momentum", "dampening", "weight_decay", "nesterov", "maximize"],
    "AdamW": ["betas", "eps", "weight_decay", "amsgrad", "maximize"],
    "wrapped": ["nesterov", "maximize"],  # the others torch itself asks for
}
OF_ALL = ["flexibility", "seed", "gate", "anchor", "flexible_vectors", "nonfinite", "alpha_dtype", "first_item"]
OLDER = [(kind, name) for kind, own in REMOVED.items() for name in own + OF_ALL]


@pytest.mark.parametrize(("kind", "option"), OLDER, ids=str)
def test_options_that_a_saved_group_lacks_take_their_defaults(kind: str, option: str) -> None:
    case = Case(kind, {"seed": 0})
    optimizer, params = halfway(case)
    state = copy.deepcopy(optimizer.state_dict())
    default = optimizer.param_groups[0][option]
    del state["param_groups"][0][option]
    resumed = copied(params)
    # An optimizer made with other options: the default is that of the class, not what this one was given.
    made = {"maximize": True, "weight_decay": 0.3, "gate": "step", "nonfinite": "raise", "seed": 5}
    fresh = case.make(resumed, **made, flexible_vectors=True, alpha_dtype=torch.bfloat16)
    fresh.load_state_dict(state)
    if option == "weight_decay" and kind == "AdamW":
        default = torch.optim.AdamW([torch.zeros(1)]).param_groups[0]["weight_decay"]
    assert fresh.param_groups[0][option] == default
    train(fresh, resumed, STOP, LAST)
    assert same_bits(resumed, uninterrupted(case))


@all_cases
def test_a_state_that_was_taken_away(case: Case) -> None:
    optimizer, params = halfway(case)
    flexibilities = [optimizer.state[p]["flexibility"] for p in params]
    optimizer.state = defaultdict(dict)
    start = copied(params)
    # The master was taken away too, so the weights are what the parameters hold.
    # They have left the Field that they began from, if they began from one.
    begun = case.make(start, anchor=None)
    scale = optimizer.scales()[0]
    begun.param_groups[0]["scale"] = scale if scale is not None else "auto"
    with pytest.warns(UserWarning, match="begin anew") as caught:
        train(optimizer, params, 0, 5)
    assert sum("begin anew" in str(w.message) for w in caught) == 1
    train(begun, start, 0, 5)
    assert [optimizer.state[p]["flexibility"] for p in params] == flexibilities
    assert same_bits(params, start)
