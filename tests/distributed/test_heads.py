"""Heads that several processes fill together are those of one process: counts exactly, sums to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed import head_cases
from flexkern.nn import ExpertHead, learning_together
from helpers.groups import needs_gloo, run_cases

pytestmark = needs_gloo


@pytest.fixture(scope="module", params=(2, 4), ids=("2 processes", "4 processes"))
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("heads")
    return run_cases("distributed.head_cases", [*head_cases.CASES], request.param, folder)


@pytest.mark.parametrize("name", [*head_cases.FILLED, "gate"])
def test_all_processes_have_what_one_has(found: list[dict[str, Any]], name: str) -> None:
    judge = head_cases.CASES[name]()
    for of_one in found:
        assert of_one[name].keys() == judge.keys()
        for key, expected in judge.items():
            value, first = of_one[name][key], found[0][name][key]
            assert torch.equal(value, first)  # to the bit on all processes
            if not expected.is_floating_point():
                assert torch.equal(value, expected)
            else:  # the lower triangle of a scatter is what counts
                both = [t.tril() if key == "scatter" else t for t in (value, expected)]
                torch.testing.assert_close(*both, rtol=2e-4, atol=2e-5)


def test_a_block_that_fails(found: list[dict[str, Any]]) -> None:
    for of_one in found:
        before, after = of_one["failing"]
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_sums_and_rows(found: list[dict[str, Any]]) -> None:
    n = len(found)
    total, ends = n * (n + 1) // 2, []
    for of_one in found:
        a, b, c, d, e = of_one["sums"]["tensors"]
        assert all(bool((t == total * k).all()) for t, k in ((a, 1.5), (b, 1), (c, 1), (e, 1)))
        assert d == 2**40 * total
        rows = [float(r + 1) for r in range(n) for _ in range(r)]
        assert of_one["sums"]["rows"].tolist() == [[value, value] for value in rows]
        assert of_one["sums"]["flags"].tolist() == [r % 2 == 1 for r in range(n)]
        assert of_one["sums"]["none"].shape == (0, 3)
        ends.append(of_one["sums"]["part"])
    assert [start for start, _ in ends] + [7] == [0] + [end for _, end in ends]


def test_what_cannot_be_added() -> None:
    with (
        pytest.raises(TypeError, match=r"head must be a RidgeHead.*got ExpertHead"),
        learning_together(ExpertHead(3)),
    ):
        pass
