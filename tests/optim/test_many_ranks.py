"""Each optimizer trains the same network with any number of processes, however torch spreads it over them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from helpers import ranks
from helpers.optimizers import same_bits
from helpers.ranks_optimizers import RUNS, WAYS, alone

pytestmark = [*ranks.marks, pytest.mark.usefixtures("one_thread")]  # as the processes have
judge = functools.cache(alone)
# Gradients are summed in other orders. AdamW divides a small one by its own size, and the gate passes it on.
CLOSE = {"SGD": 1e-5, "wrapped": 1e-5, "AdamW": 1e-4}


@pytest.mark.parametrize(("way", "count", "kind", "option"), RUNS)
def test_training_is_that_of_one_process(
    found: list[dict[str, Any]], way: str, count: int, kind: str, option: str
) -> None:
    expected = judge(kind, option)
    answers = ranks.of_case(found, f"{way}, {count}, {kind}, {option}")
    assert len(answers) == count
    for answer in answers:
        assert same_bits(answer["weights"], answers[0]["weights"])  # of all processes
        assert answer["scales"] == answers[0]["scales"]
        assert answer["fields"] == expected["fields"]
        assert answer["scales"] == pytest.approx(expected["scales"], rel=1e-4)
        close = 1e-2 if option == "bfloat16" else CLOSE[kind]
        for mine, theirs in zip(answer["weights"], expected["weights"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=close, atol=close)


@pytest.mark.parametrize(
    ("way", "count"), [(way, count) for way, of_way in WAYS.items() for count in of_way.counts]
)
def test_fields_are_those_of_the_whole_to_the_bit(found: list[dict[str, Any]], way: str, count: int) -> None:
    for answer in ranks.of_case(found, f"fields, {way}, {count}"):
        for part, field in answer:
            assert part.shape == field.shape
            assert torch.equal(part, field)
