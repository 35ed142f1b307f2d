"""Silent synapses on several processes: all convert the same ones, which are those of one process."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch

from distributed import silent_cases, silent_sharded
from distributed.silent_networks import network
from helpers.groups import needs_gloo, run_cases

pytestmark = [needs_gloo, pytest.mark.usefixtures("one_thread_in_module")]  # as the processes have
WORLDS = (2, 4)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    names = [name for name in silent_cases.CASES if name not in ("halves", *silent_cases.IN_COPIES)]
    return run_cases("distributed.silent_cases", names, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    names = [*silent_cases.ON_FOUR, *silent_cases.IN_COPIES, "halves"]
    return run_cases("distributed.silent_cases", names, 4, tmp_path_factory.mktemp("four"))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, dict)):
        keys = a if isinstance(a, dict) else range(len(a))
        return len(a) == len(b) and all(same(a[k], b[k]) for k in keys)
    return a == b


@functools.cache
def judged(name: str) -> dict[str, Any]:
    return silent_cases.CASES[name]()


@pytest.mark.parametrize("name", silent_cases.TRAINED)
def test_two_processes_have_what_one_has(two: list[dict[str, Any]], name: str) -> None:
    check(two, name)


@pytest.mark.parametrize("name", [*silent_cases.ON_FOUR, *silent_cases.IN_COPIES])
def test_four_processes_have_what_one_has(four: list[dict[str, Any]], name: str) -> None:
    check(four, name)


def check(found: list[dict[str, Any]], name: str) -> None:
    judge, states = judged(name), [of_one[name] for of_one in found]
    assert all(same(state, states[0]) for state in states[1:])  # to the bit
    for key in ("masks", "counts", "conversions"):
        assert same(states[0][key], judge[key])
    assert same(states[0].get("history"), judge.get("history"))  # after each step
    before = network().state_dict()["0.silent_count"]
    assert not torch.equal(judge["counts"][0], before)  # something was converted
    for key in ("weights", "thresholds"):
        rtol = 0.02 if "bfloat16" in name else 2e-4  # roundings of 200 steps
        for here, there in zip(states[0][key], judge[key], strict=True):
            torch.testing.assert_close(here, there, rtol=rtol, atol=rtol / 20)


def test_one_process_goes_on_from_what_two_have_saved(two: list[dict[str, Any]]) -> None:
    check([{"split uneven": silent_sharded.went_on(two[0]["saved"])}], "split uneven")


def test_who_is_alone_waits_for_nobody(two: list[dict[str, Any]]) -> None:
    judge = silent_cases.trained_alone()
    assert all(same(of_one["alone"], judge) for of_one in two[1:])
    assert not same(two[0]["alone"], judge)


def test_groups_of_processes(four: list[dict[str, Any]]) -> None:
    halves = [of_one["halves"] for of_one in four]
    assert same(halves[0][0], halves[1][0])
    assert same(halves[2][0], halves[3][0])
    for together, judge in halves:
        assert same(together["masks"], judge["masks"])
    assert not same(halves[0][0]["masks"], halves[2][0]["masks"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other seeds", "different fields.*same seed, stream and init"),
        ("other seeds, fused", "initial field of 0 is"),
        ("fused alone", "fused_step on several processes.*fused_step = False"),
        ("by columns", r"SilentLinear\(8, 6\).*Shard\(dim=1\).*whole rows.*shard_placement_fn"),
        ("tensor parallel", r"SilentLinear\(17, 9\).*whole rows.*parallelize_module"),
        ("tensor parallel, torch's", r"SilentLinear\(13, 17\): in a training pass.*parallelize_module.*eval"),
        ("sharded, alone", r"fully_shard has spread its weight over 2 processes.*added up over 1"),
        ("joined", r"join\(\).*throw_on_early_termination"),
    ],
)
def test_refused(two: list[dict[str, Any]], name: str, words: str) -> None:
    for of_one in two:
        assert re.search(words, of_one[name], re.DOTALL)
