"""Checkpoints move between numbers of processes, in the middle of an item, for every optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import ranks
from helpers.optimizers import KINDS, MAKERS
from helpers.ranks_checkpoints import LOADS

pytestmark = ranks.marks
# Weights that go on from the same bits are apart by the order of sums only; in bfloat16 (that of AdamW) a
# gradient is rounded before it is summed.
CLOSE = {"SGD": 1e-5, "wrapped": 1e-5, "AdamW": 2e-2}


def assert_close(kind: str, left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for mine, theirs in zip(left, right, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=CLOSE[kind], atol=CLOSE[kind])


@pytest.mark.parametrize(("kind", "before", "after"), LOADS)
def test_from_each_number_of_processes_to_each_other(
    found: list[dict[str, Any]], kind: str, before: int, after: int
) -> None:
    expected = ranks.of_case(found, f"saved, {kind}, {before}")[0]
    for weights in ranks.of_case(found, f"loaded, {kind}, from {before} to {after}"):
        assert_close(kind, weights, expected)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_whole_state_goes_back_and_into_one_process(found: list[dict[str, Any]], kind: str) -> None:
    for went_on, back, alone in ranks.of_case(found, f"the whole state, {kind}"):
        assert all(map(torch.equal, went_on, back))
        assert_close(kind, alone, went_on)


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_state_dict_fits_every_sharding(found: list[dict[str, Any]], kind: str) -> None:
    for went_on, *loaded in ranks.of_case(found, f"its own state, {kind}"):
        for weights in loaded:
            assert_close(kind, weights, went_on)
